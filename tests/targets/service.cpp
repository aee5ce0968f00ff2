// service MIB: a heap as that of a service: sessions with strings, trees and numbers, requests with
// bodies, half of them text; a tenth of the requests is freed again.
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <malloc.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <csignal>

struct Object {
    virtual ~Object() = default;
    long id = 0;
};

struct Session : Object {
    std::string name, token;
    std::map<std::string, std::string> headers;
    std::vector<double> history;
};

struct Request : Object {
    std::string url;
    std::unique_ptr<char[]> body;
    std::shared_ptr<Session> session;
};

static const char words[] = "{\"id\": 17, \"name\": \"the quick brown fox\", \"tags\": [1, 2]}, ";

int main(int argc, char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    size_t wanted = strtoull(argc > 1 ? argv[1] : "64", nullptr, 10) << 20;
    std::mt19937_64 random(20241126);
    std::vector<std::shared_ptr<Session>> sessions;
    std::vector<std::unique_ptr<Request>> requests;
    for (long id = 0; mallinfo2().uordblks < wanted; id++) {
        auto session = std::make_shared<Session>();
        session->name = "user " + std::to_string(random());
        session->token.resize(40, static_cast<char>('a' + random() % 26));
        for (int i = 0; i < 3; i++)
            session->headers["header " + std::to_string(i)] = "value " + std::to_string(random());
        session->history.resize(random() % 200);
        for (double &each : session->history)
            each = static_cast<double>(random()) / 3;
        for (int i = 0; i < 3; i++) {
            auto request = std::make_unique<Request>();
            size_t length = 200 + random() % 4000;
            request->id = id;
            request->url = "https://service.example/" + std::to_string(random());
            request->body.reset(new char[length]);
            for (size_t at = 0; at < length; at++)
                request->body[at] = i ? words[at % (sizeof words - 1)]
                                      : static_cast<char>((random() >> 11) & 0xff);
            request->session = session;
            requests.push_back(std::move(request));
        }
        sessions.push_back(std::move(session));
    }
    size_t kept = requests.size();
    for (size_t i = 0; i < requests.size(); i += 10, kept--)
        requests[i].reset();
    printf("{\"pid\": %d, \"sessions\": %zu, \"requests\": %zu}\n", getpid(), sessions.size(), kept);
    fflush(stdout);
    char byte;
    if (read(0, &byte, 1) > 0)
        return 1;
    _exit(0);
}
