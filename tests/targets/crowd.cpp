// crowd N: N threads, each some frames deep, with a thread-local variable, in one of several calls.
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>

#include <csignal>
#include <ctime>
#include <poll.h>
#include <sys/prctl.h>
#include <unistd.h>

static thread_local volatile int mine;

namespace {

std::mutex mutex;
std::condition_variable changed, never;
int ready;

class Visitor {
  public:
    virtual ~Visitor() = default;
    virtual int visit(const std::string &name, int frames) = 0;
};

class Deep : public Visitor {
  public:
    explicit Deep(int number) : number_(number) {}

    __attribute__((noinline)) int visit(const std::string &name, int frames) override {
        if (frames) {
            int found = visit(name + "/" + std::to_string(frames), frames - 1);
            return found + static_cast<int>(name.size());
        }
        mine = number_;
        std::unique_lock<std::mutex> lock(mutex);
        ready++;
        changed.notify_one();
        if (number_ % 4 == 0)
            never.wait(lock, [] { return false; });
        lock.unlock();
        timespec day = {86400, 0};
        switch (number_ % 4) {
        case 1:
            return nanosleep(&day, nullptr);
        case 2:
            return poll(nullptr, 0, -1);
        default:
            return pause();
        }
    }

  private:
    int number_;
};

} // namespace

int main(int argc, char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int count = argc > 1 ? atoi(argv[1]) : 1;
    for (int i = 1; i <= count; i++)
        std::thread([i] { Deep(i).visit("thread", i % 20); }).detach();
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [count] { return ready == count; });
    lock.unlock();
    puts("ready");
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    _exit(0);
}
