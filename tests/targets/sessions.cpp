// sessions: a service that forgets no session; a byte on standard input serves 20,000 requests, of
// which each logs in anew. It also does ordinary work, which goes away again.
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <cstdio>
#include <sys/prctl.h>
#include <unistd.h>

#include <csignal>

struct Session {
    explicit Session(long id) : user("user " + std::to_string(id) + " of the service") {}
    virtual ~Session() = default;
    std::string user;
    char state[200] = {};
};

struct Request {
    virtual ~Request() = default;
    char body[500] = {};
};

int main() {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    std::map<long, std::unique_ptr<Session>> sessions;
    std::vector<std::unique_ptr<Request>> pool;
    for (int i = 0; i < 50000; i++)
        pool.push_back(std::make_unique<Request>());
    char byte;
    do {
        for (int i = 0; i < 20000; i++) {
            auto request = std::make_unique<Request>();
            long id = static_cast<long>(sessions.size());
            sessions[id * 7919] = std::make_unique<Session>(id);
            pool[static_cast<size_t>(i)] = std::move(request);
        }
        printf("{\"pid\": %d, \"sessions\": %zu}\n", getpid(), sessions.size());
        fflush(stdout);
    } while (read(0, &byte, 1) > 0);
    _exit(0);
}
