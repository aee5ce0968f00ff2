/*
 * The guardian: a process of its own that pauses the target by ptrace(2), and undoes all of it
 * whatever becomes of the command that wanted it.
 *
 * The kernel releases the threads of a tracer that dies, so a freeze can do no harm. A fork
 * runs clone(2) in a thread of the target, which has registers of ours meanwhile: only its tracer
 * can give it back its own. So that is done here, without Python, with all signals blocked.
 *
 * Where a thread is stopped matters. PTRACE_INTERRUPT stops it inside get_signal() of the kernel,
 * and an interrupted system call is restarted *behind* that: so registers are put back
 * at such a stop only, never at the stop at the end of a system call, and never by single
 * steps, whose SIGTRAP would reset the target's handler if it blocks or ignores that.
 *
 * A thread stopped by PTRACE_INTERRUPT holds no signal: those that come stay pending. While it
 * runs for us they are blocked. See ptrace(2), signal(7).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fastdump.h"

/* Later than the C library's headers, or left out by them. */
#define GETSIGMASK 0x420a
#define SETSIGMASK 0x420b
#define GET_RSEQ_CONFIGURATION 0x420f           /* Linux 5.13 */
#define GET_SYSCALL_USER_DISPATCH_CONFIG 0x4211 /* Linux 6.4 */
#define OPTION_EXITKILL (1 << 20)
#define OPTION_SUSPEND_SECCOMP (1 << 21) /* Linux 4.3, CAP_SYS_ADMIN */
#define EVENT_STOP 128
#define ERESTARTNOHAND 514 /* include/linux/errno.h: restart, unless a handler runs */
#define ERESTART_RESTARTBLOCK 516

#define MILLISECOND 1000000ull
#define SECOND 1000000000ull
#define STOP_PATIENCE (10 * SECOND)       /* for a thread that may run: the host is overloaded */
#define KERNEL_PATIENCE (5 * MILLISECOND) /* for one that waits in the kernel, and cannot run */
#define LATE_PATIENCE (100 * MILLISECOND) /* the same, before our exit lets it go */
#define REAP_PATIENCE (10 * SECOND)
#define CALL_PATIENCE (10 * MILLISECOND) /* between two looks at one that runs a call for us */
#define NO_DEADLINE UINT64_MAX

/* Descriptors of the guardian: it has no others. */
enum { SOCKET, COMMAND, MEM, CHILDREN };

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
}

/* "/proc/PID/" and what follows, without stdio: locks of other threads are held for ever here. */
static const char *proc_path(char path[64], int32_t pid, const char *rest) {
    char digits[12], *out = path + strlen("/proc/");
    int count = 0;
    memcpy(path, "/proc/", strlen("/proc/"));
    do
        digits[count++] = (char)('0' + pid % 10);
    while (pid /= 10);
    while (count)
        *out++ = digits[--count];
    *out++ = '/';
    memcpy(out, rest, strlen(rest) + 1);
    return path;
}

static void write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) {
        /* A wish, not a need: without the permission the usual score stays. */
    }
    if (fd >= 0)
        close(fd);
}

/* The state of a task, as of proc_pid_stat(5); 'X' if it is no more. */
static char state_of(int32_t tid) {
    char path[64], text[512];
    int fd = open(proc_path(path, tid, "stat"), O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    const char *name_end = length > 0 ? memrchr(text, ')', (size_t)length) : NULL;
    return name_end && name_end + 2 < text + length ? name_end[2] : 'X';
}

/*
 * Whether a thread has a seccomp filter, as of proc_pid_status(5): each has its own. One that
 * cannot be asked, or is in so many groups that the line is not reached, may have one.
 */
static bool may_have_seccomp(int32_t tid) {
    static const char key[] = "\nSeccomp:\t";
    char path[64], text[8192];
    int fd = open(proc_path(path, tid, "status"), O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    if (length < 0)
        return true;
    text[length] = 0;
    const char *line = strstr(text, key);
    return line ? line[sizeof key - 1] != '0' : length == sizeof text - 1;
}

/* Registers of a thread, as far as a system call needs them. */
#if defined(__x86_64__)

typedef struct user_regs_struct registers;

static uint64_t instruction_pointer(const registers *r) { return r->rip; }

static bool in_system_call(const registers *r) { return (int64_t)r->orig_rax >= 0; }

static int64_t result_of(const registers *r) { return (int64_t)r->rax; }

/* The stack pointer serves the copy: should it ever run, the first `ret` is its end. */
static void set_system_call(registers *r, uint64_t code, long number, const uint64_t argument[4]) {
    r->rip = code;
    r->rax = (uint64_t)number;
    r->orig_rax = (uint64_t)-1; /* no system call to be restarted */
    r->rdi = argument[0];
    r->rsi = argument[1];
    r->rdx = argument[2];
    r->r10 = argument[3];
    r->rbp = r->rbx = r->rcx = r->r8 = r->r9 = r->r11 = 0;
    r->r12 = r->r13 = r->r14 = r->r15 = 0;
}

/* The kernel restarts by itself, from what is put back here. */
static void prepare_restart(registers *r) { (void)r; }

/*
 * Calls that the kernel does not restart though no handler ran: the target would see EINTR. With
 * this result it restarts them, unless there is a handler to run: then they end with EINTR, as
 * ever. See signal(7), "Interruption of system calls and library functions by stop signals".
 */
static bool repair(registers *r) {
    if (!in_system_call(r) || (int64_t)r->rax != -EINTR)
        return false;
    switch (r->orig_rax) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case 441: /* epoll_pwait2 */
    case 426: /* io_uring_enter */
    case SYS_io_getevents:
    case 333: /* io_pgetevents */
    case SYS_rt_sigtimedwait:
    case SYS_semop:
    case SYS_semtimedop:
    case SYS_accept: /* these with SO_RCVTIMEO or SO_SNDTIMEO */
    case SYS_accept4:
    case SYS_connect:
    case SYS_recvfrom:
    case SYS_recvmsg:
    case SYS_recvmmsg:
    case SYS_sendto:
    case SYS_sendmsg:
    case SYS_sendmmsg:
        r->rax = (uint64_t)-ERESTARTNOHAND;
        return true;
    default:
        return false;
    }
}

static const unsigned char system_call_code[] = {0x0f, 0x05};

#elif defined(__aarch64__)

typedef struct user_regs_struct registers;

static uint64_t instruction_pointer(const registers *r) { return r->pc; }

/*
 * At the stop the kernel has prepared the restart already (do_signal() of arch/arm64), so neither
 * the result nor whether there was a call can be seen; what is left is the instruction at pc.
 */
static bool in_system_call(const registers *r) {
    uint32_t instruction = 0;
    return pread(MEM, &instruction, 4, (off_t)r->pc) == 4 && instruction == 0xd4000001;
}

static int64_t result_of(const registers *r) { return (int64_t)r->regs[0]; }

static void set_system_call(registers *r, uint64_t code, long number, const uint64_t argument[4]) {
    r->pc = code;
    for (int i = 0; i < 31; i++)
        r->regs[i] = i < 4 ? argument[i] : 0; /* with x30 = 0 the first `ret` ends the copy */
    r->regs[8] = (uint64_t)number;
}

/* Calls that go on by restart_syscall(2), or they would wait for their whole time again. */
static void prepare_restart(registers *r) {
    if (!in_system_call(r))
        return;
    bool relative = r->regs[8] == SYS_nanosleep ||
                    (r->regs[8] == SYS_clock_nanosleep && !(r->regs[1] & TIMER_ABSTIME)) ||
                    (r->regs[8] == SYS_futex && (r->regs[1] & 0x7f) == 0 && r->regs[3]);
    if (relative)
        r->regs[8] = SYS_restart_syscall;
}

static bool repair(registers *r) {
    (void)r;
    return false;
}

static const unsigned char system_call_code[] = {0x01, 0x00, 0x00, 0xd4};

#else
#error "fastdump needs x86_64 or aarch64"
#endif

static bool get_registers(int32_t tid, registers *registers_ret) {
    struct iovec vector = {registers_ret, sizeof *registers_ret};
    /* Of a 32-bit task there are fewer. */
    return ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &vector) == 0 &&
           vector.iov_len == sizeof *registers_ret;
}

static bool set_registers(int32_t tid, const registers *from) {
    struct iovec vector = {(void *)from, sizeof *from};
    return ptrace(PTRACE_SETREGSET, tid, NT_PRSTATUS, &vector) == 0;
}

/* Until something happens to a tracee, or time is over: then false. */
static bool sleep_until(uint64_t deadline) {
    struct signalfd_siginfo drained[8];
    uint64_t time = now();
    if (time >= deadline)
        return false;
    uint64_t left = (deadline - time) / MILLISECOND + 1;
    struct pollfd events = {CHILDREN, POLLIN, 0};
    if (poll(&events, 1, left > 1000 ? 1000 : (int)left) > 0)
        while (read(CHILDREN, drained, sizeof drained) > 0)
            ;
    return true;
}

/* Wait until a tracee stops or ends: its wait status; 0 when time is over, -ECHILD if it is gone.
 */
static int64_t await(int32_t tid, uint64_t deadline) {
    for (;;) {
        int status;
        pid_t got = waitpid(tid, &status, __WALL | WNOHANG);
        if (got == tid)
            return status;
        if (got < 0)
            return -errno;
        if (!sleep_until(deadline))
            return 0;
    }
}

static bool is_event_stop(int64_t status) {
    return WIFSTOPPED((int)status) && (int)status >> 16 == EVENT_STOP;
}

/*
 * After PTRACE_INTERRUPT: go on to the stop inside get_signal(). Signals that were on their way are
 * delivered as if we were not there. Returns 1, 0 if the time is over, -ESRCH if it has ended.
 */
static int64_t settle(int32_t tid, uint64_t deadline) {
    for (;;) {
        int64_t status = await(tid, deadline);
        if (status == 0)
            return 0;
        if (status < 0 || !WIFSTOPPED((int)status))
            return -ESRCH;
        if (is_event_stop(status)) {
            registers found;
            if (get_registers(tid, &found) && repair(&found))
                set_registers(tid, &found);
            return 1;
        }
        int signal = (int)status >> 16 || WSTOPSIG((int)status) & 0x80 ? 0 : WSTOPSIG((int)status);
        ptrace(PTRACE_CONT, tid, 0, (void *)(intptr_t)signal);
    }
}

/* All threads of the target, each seized and interrupted. */

/* Whether it is seized; listings come in the same order, so the guess is nearly always right. */
static bool is_seized(const struct fastdump_guard *guard, int32_t tid, uint64_t *guess) {
    uint64_t count = guard->threads_used;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t at = (*guess + i) % count;
        if (guard->threads[at].tid == tid) {
            *guess = at + 1;
            return true;
        }
    }
    return false;
}

static int32_t number_of(const char *name) {
    int32_t number = 0;
    for (; *name >= '0' && *name <= '9'; name++)
        number = number * 10 + *name - '0';
    return *name ? 0 : number;
}

static int64_t seize(struct fastdump_guard *guard, int32_t tid) {
    if (ptrace(PTRACE_SEIZE, tid, 0, 0) < 0) {
        int error = errno;
        char state = state_of(tid);
        return state == 'Z' || state == 'X' ? 0 : -error;
    }
    if (!guard->started)
        guard->started = now();
    ptrace(PTRACE_INTERRUPT, tid, 0, 0);
    if (guard->threads_used == guard->threads_capacity)
        return -ENOSPC;
    guard->threads[guard->threads_used++] = (struct fastdump_thread){.tid = tid};
    return 1;
}

/* Seize the threads not seen before. Returns how many, or -errno. */
static int64_t seize_new(struct fastdump_guard *guard, int tasks) {
    char entries[4096];
    int64_t found = 0, count;
    uint64_t guess = 0;
    lseek(tasks, 0, SEEK_SET);
    while ((count = syscall(SYS_getdents64, tasks, entries, sizeof entries)) > 0) {
        for (int64_t at = 0; at < count;) {
            const struct dirent64 *entry = (const void *)(entries + at);
            int32_t tid = number_of(entry->d_name);
            at += entry->d_reclen;
            if (!tid || is_seized(guard, tid, &guess))
                continue;
            int64_t got = seize(guard, tid);
            if (got < 0)
                return got;
            found += got;
        }
    }
    return count < 0 ? -errno : found;
}

/* Whether the command does not want anything any more, or is dead. */
static bool is_left_alone(void) {
    struct pollfd events[] = {{SOCKET, POLLIN, 0}, {COMMAND, POLLIN, 0}};
    return poll(events, 2, 0) > 0;
}

/* Wait for those that are not stopped yet; those that cannot stop are left where they are. */
static int64_t settle_all(struct fastdump_guard *guard) {
    uint64_t begun = now(), patience = STOP_PATIENCE;
    if (guard->max_pause_ns && guard->max_pause_ns < patience)
        patience = guard->max_pause_ns;
    for (uint64_t i = 0; i < guard->threads_used;) {
        struct fastdump_thread *thread = &guard->threads[i];
        int64_t got = thread->stopped ? 1 : settle(thread->tid, now() + 5 * MILLISECOND);
        char state = got == 0 ? state_of(thread->tid) : 'T';
        if (got < 0 || state == 'Z' || state == 'X') { /* a leader may exit before the others */
            *thread = guard->threads[--guard->threads_used];
            continue;
        }
        if (got == 0) {
            uint64_t waited = now() - begun;
            if (is_left_alone())
                return -ECANCELED;
            if (waited < (state == 'D' ? KERNEL_PATIENCE : patience))
                continue;
            if (state != 'D')
                return -ETIMEDOUT;
        }
        thread->stopped = got == 1;
        i++;
    }
    return 0;
}

static int64_t stop_all(struct fastdump_guard *guard) {
    char path[64];
    int tasks = open(proc_path(path, guard->pid, "task"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (tasks < 0)
        return -ESRCH;
    int64_t got;
    /* A thread that is not stopped may start another: until there is no new one. */
    while ((got = seize_new(guard, tasks)) > 0)
        if ((got = settle_all(guard)) < 0)
            break;
    close(tasks);
    if (got == 0 && guard->threads_used == 0)
        got = -ESRCH;
    return got;
}

static int64_t save_regset(struct fastdump_guard *guard, int32_t tid, uint32_t type) {
    uint64_t head = sizeof(struct fastdump_regset), at = guard->area_used;
    if (guard->area_capacity - at < head + sizeof(siginfo_t))
        return -ENOSPC;
    uint64_t room = guard->area_capacity - at - head;
    struct iovec vector = {guard->area + at + head, room};
    if (type == NT_SIGINFO) {
        if (ptrace(PTRACE_GETSIGINFO, tid, 0, vector.iov_base) < 0)
            return 0;
        vector.iov_len = sizeof(siginfo_t);
    } else if (ptrace(PTRACE_GETREGSET, tid, type, &vector) < 0) {
        return 0; /* this machine, or this task, has none */
    }
    if (vector.iov_len == room)
        return -ENOSPC; /* it may be cut off */
    struct fastdump_regset *regset = (void *)(guard->area + at);
    *regset = (struct fastdump_regset){type, (uint32_t)vector.iov_len};
    guard->area_used += head + ((vector.iov_len + 7) & ~7ull);
    return 0;
}

static int64_t save_registers(struct fastdump_guard *guard) {
    for (uint64_t i = 0; i < guard->threads_used; i++) {
        struct fastdump_thread *thread = &guard->threads[i];
        thread->regsets = thread->end = guard->area_used;
        if (!thread->stopped)
            continue;
        ptrace(GETSIGMASK, thread->tid, (void *)sizeof thread->blocked, &thread->blocked);
        for (int n = 0; n < FASTDUMP_REGSETS && guard->regset_types[n]; n++) {
            int64_t error = save_regset(guard, thread->tid, guard->regset_types[n]);
            if (error)
                return error;
        }
        thread->end = guard->area_used;
    }
    return 0;
}

/* System calls in a thread of the target. */

struct call {
    long number;
    uint64_t argument[4];
    int64_t result;
    int32_t child;   /* that it made */
    uint64_t put_ns; /* while the registers were ours */
};

/*
 * Whether a thread may run a system call for us. Not the kernel's own among the threads (io_uring's
 * workers, at address 0): they never come to user space. Not in a restartable sequence (rseq(2)),
 * which the kernel would forget: a thread in a system call is in none. And not where system calls
 * are turned into signals (prctl(2), PR_SET_SYSCALL_USER_DISPATCH).
 */
static bool may_inject(const struct fastdump_guard *guard, int32_t tid, registers *registers_ret) {
    uint64_t dispatch[4] = {0}, rseq[3] = {0}, critical = 0;
    if (!get_registers(tid, registers_ret) || !instruction_pointer(registers_ret))
        return false;
    ptrace(GET_SYSCALL_USER_DISPATCH_CONFIG, tid, (void *)sizeof dispatch, dispatch);
    if (dispatch[0])
        return false;
    unsigned char code[sizeof system_call_code];
    if (!guard->code || pread(MEM, code, sizeof code, (off_t)guard->code) != sizeof code ||
        memcmp(code, system_call_code, sizeof code) != 0)
        return false;
    if (in_system_call(registers_ret))
        return true;
    if (ptrace(GET_RSEQ_CONFIGURATION, tid, (void *)sizeof rseq, rseq) < 0)
        return errno == EIO; /* a kernel before 5.13 */
    /* struct rseq: cpu_id_start, cpu_id, and then the critical section, if in one */
    return !rseq[0] || (pread(MEM, &critical, 8, (off_t)(rseq[0] + 8)) == 8 && critical == 0);
}

/* Let the target go. Threads that could not stop are let go as soon as they can: see attend(). */
static void release(struct fastdump_guard *guard) {
    if (guard->released)
        return;
    __atomic_store_n(&guard->released, 1, __ATOMIC_SEQ_CST);
    for (uint64_t i = 0; i < guard->threads_used; i++)
        if (guard->threads[i].stopped)
            ptrace(PTRACE_DETACH, guard->threads[i].tid, 0, 0);
    guard->total_ns = guard->started ? now() - guard->started : 0;
}

/*
 * Wait for a thread that runs a system call for us: its wait status, or -ECHILD. clone(2) may have
 * to wait for another thread, of the target even, which reads of it by userfaultfd(2). If it waits
 * when the longest pause is over, or if nobody wants the pause any more, the others are let go.
 */
static int64_t await_call(struct fastdump_guard *guard, int32_t tid) {
    int64_t status;
    while ((status = await(tid, now() + CALL_PATIENCE)) == 0) {
        bool over = guard->max_pause_ns && now() - guard->started >= guard->max_pause_ns;
        if ((over && state_of(tid) == 'D') || is_left_alone())
            release(guard);
    }
    return status;
}

/* Resume a thread up to its next stop of interest. Returns a wait status, or -ESRCH. */
static int64_t advance(struct fastdump_guard *guard, int32_t tid, int request) {
    int signal = 0;
    for (;;) {
        if (ptrace(request, tid, 0, (void *)(intptr_t)signal) < 0)
            return -ESRCH;
        int64_t status = await_call(guard, tid);
        if (status < 0 || !WIFSTOPPED((int)status))
            return -ESRCH;
        bool event = (int)status >> 16 != 0;
        if (event ? !is_event_stop(status) || request == PTRACE_CONT : WSTOPSIG((int)status) & 0x80)
            return status;
        signal = event ? 0 : WSTOPSIG((int)status); /* SIGSTOP alone cannot be blocked */
    }
}

/* The copy is stopped before its first instruction; from here on it dies with us. */
static void secure(int32_t child) {
    int64_t status = await(child, NO_DEADLINE);
    if (status > 0 && WIFSTOPPED((int)status))
        ptrace(PTRACE_SETOPTIONS, child, 0, (void *)OPTION_EXITKILL);
}

/* With the registers ours: into the system call, and out of it. */
static int64_t run_call(struct fastdump_guard *guard, int32_t tid, struct call *call) {
    int64_t status = advance(guard, tid, PTRACE_SYSCALL);
    if (status < 0)
        return status;
    while ((status = advance(guard, tid, PTRACE_SYSCALL)) >= 0 && (int)status >> 16) {
        unsigned long child;
        if (ptrace(PTRACE_GETEVENTMSG, tid, 0, &child) == 0) {
            call->child = (int32_t)child;
            secure(call->child);
        }
    }
    registers after;
    if (status < 0 || !get_registers(tid, &after))
        return -ESRCH;
    call->result = result_of(&after);
    /* To a stop from which system calls are restarted: see above. */
    if (ptrace(PTRACE_INTERRUPT, tid, 0, 0) < 0)
        return -ESRCH;
    status = advance(guard, tid, PTRACE_CONT);
    return status < 0 ? status : 0;
}

/*
 * Run a system call in a stopped thread, of which may_inject() gave the registers. Returns 0,
 * -EPERM if it has a seccomp filter that cannot be suspended: nothing was done; -ESRCH if it ended.
 */
static int64_t inject(struct fastdump_guard *guard, int32_t tid, const registers *own,
                      struct call *call) {
    uint64_t mask, all = UINT64_MAX;
    intptr_t options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE;
    intptr_t without_seccomp = options | OPTION_SUSPEND_SECCOMP;
    if (ptrace(GETSIGMASK, tid, (void *)sizeof mask, &mask) < 0)
        return -ESRCH;
    if (ptrace(PTRACE_SETOPTIONS, tid, 0, (void *)without_seccomp) < 0) {
        if (errno != ESRCH && may_have_seccomp(tid))
            return -EPERM;
        if (ptrace(PTRACE_SETOPTIONS, tid, 0, (void *)options) < 0)
            return -ESRCH;
    }
    registers ours = *own, restored = *own;
    set_system_call(&ours, guard->code, call->number, call->argument);
    prepare_restart(&restored);
    uint64_t begun = now();
    int64_t error = -ESRCH;
    if (ptrace(SETSIGMASK, tid, (void *)sizeof all, &all) == 0) {
        if (set_registers(tid, &ours))
            error = run_call(guard, tid, call);
        set_registers(tid, &restored);
        ptrace(SETSIGMASK, tid, (void *)sizeof mask, &mask);
    }
    call->put_ns = now() - begun;
    ptrace(PTRACE_SETOPTIONS, tid, 0, 0);
    return error;
}

/* A copy of the memory: clone(2) in a thread that may do so. */
static void copy_by_fork(struct fastdump_guard *guard, int64_t *inner_pid_ret) {
    /*
     * No SIGCHLD, and no wait of the target sees it. It shares the descriptors, so that what the
     * target closes is closed. Its stack pointer is useless: see set_system_call().
     */
    struct call call = {SYS_clone, {CLONE_FILES, 16, 0, 0}, 0, 0, 0};
    registers own;
    guard->step = FASTDUMP_STEP_TASK;
    guard->error = EBUSY;
    for (int pass = 0; pass < 2; pass++) {
        for (uint64_t i = 0; i < guard->threads_used; i++) {
            int32_t tid = guard->threads[i].tid;
            if (!guard->threads[i].stopped || !may_inject(guard, tid, &own) ||
                (pass == 0 && !in_system_call(&own)))
                continue;
            guard->threads[i].stopped = false; /* release() is to leave it alone meanwhile */
            int64_t error = inject(guard, tid, &own, &call);
            guard->threads[i].stopped = true;
            if (guard->released)
                ptrace(PTRACE_DETACH, tid, 0, 0);
            guard->step = !error            ? FASTDUMP_STEP_CLONE
                          : error == -EPERM ? FASTDUMP_STEP_SECCOMP
                                            : FASTDUMP_STEP_TASK;
            guard->error = (int32_t)-(error ? error : call.result);
            if (error == -EPERM)
                continue; /* another thread may have no filter */
            guard->fork_ns = call.put_ns;
            guard->child = call.child; /* also of a target that was killed in between */
            *inner_pid_ret = call.result;
            if (call.child)
                guard->error = guard->step = 0;
            return;
        }
    }
}

/* Release the threads that were not stopped, as they stop; false if there are none left. */
static bool release_late(struct fastdump_guard *guard) {
    bool waiting = false;
    for (uint64_t i = 0; guard->released && i < guard->threads_used; i++) {
        struct fastdump_thread *thread = &guard->threads[i];
        if (thread->stopped)
            continue;
        int64_t got = settle(thread->tid, 0);
        if (got == 1)
            ptrace(PTRACE_DETACH, thread->tid, 0, 0);
        thread->stopped = got != 0;
        waiting |= got == 0;
    }
    return waiting;
}

/* Until the command has what it wants, or dies; or the longest pause is over. */
static void attend(struct fastdump_guard *guard) {
    struct pollfd events[] = {{SOCKET, POLLIN, 0}, {COMMAND, POLLIN, 0}, {CHILDREN, POLLIN, 0}};
    struct signalfd_siginfo drained[8];
    for (;;) {
        int timeout = -1;
        if (!guard->released && guard->max_pause_ns) {
            uint64_t end = guard->started + guard->max_pause_ns, time = now();
            if (time >= end)
                release(guard);
            else
                timeout = (int)((end - time) / MILLISECOND) + 1;
        }
        release_late(guard);
        if (poll(events, 3, timeout) < 0)
            continue;
        if (events[0].revents || events[1].revents)
            return;
        if (events[2].revents)
            while (read(CHILDREN, drained, sizeof drained) > 0)
                ;
    }
}

/* A thread was interrupted, and may stop yet. */
static void expect_late(struct fastdump_guard *guard, int32_t tid) {
    uint64_t i = 0;
    while (i < guard->threads_used && guard->threads[i].tid != tid)
        i++;
    if (i == guard->threads_capacity)
        return;
    if (i == guard->threads_used)
        guard->threads[guard->threads_used++] = (struct fastdump_thread){.tid = tid};
    guard->threads[i].stopped = 0;
}

/* wait4(2) in one thread of the target, which is the parent of the copy. */
static bool reap_with(struct fastdump_guard *guard, int32_t tid, int64_t inner_pid,
                      uint64_t deadline) {
    struct call call = {SYS_wait4, {(uint64_t)inner_pid, 0, WNOHANG | __WALL, 0}, 0, 0, 0};
    registers own;
    bool reaped = false;
    /* It may be ours already: a pass before, it did not stop. */
    ptrace(PTRACE_SEIZE, tid, 0, 0);
    if (ptrace(PTRACE_INTERRUPT, tid, 0, 0) < 0)
        return false;
    int64_t got;
    do
        got = settle(tid, now() + KERNEL_PATIENCE);
    while (got == 0 && state_of(tid) != 'D' && now() < deadline);
    if (got == 1) {
        if (may_inject(guard, tid, &own) && inject(guard, tid, &own, &call) == 0)
            /* ECHILD: it is no child any more, the target has waited for all with __WALL */
            reaped = call.result == inner_pid || call.result == -ECHILD;
        ptrace(PTRACE_DETACH, tid, 0, 0);
    } else if (got == 0) {
        expect_late(guard, tid);
    }
    return reaped;
}

/* Whether the address space is one of the dead: of a target that has exited, or called exec. */
static bool is_gone(void) { /* see fastdump_alive() */
    return pread(MEM, &(char){0}, 1, (off_t)0x7ffffffffffff000) == 0;
}

/* Kill the copy, and let its parent reap it: the target, unless that has exited. */
static void remove_copy(struct fastdump_guard *guard, int64_t inner_pid) {
    int64_t status;
    kill(guard->child, SIGKILL);
    while ((status = await(guard->child, NO_DEADLINE)) > 0 && WIFSTOPPED((int)status))
        ;
    uint64_t deadline = now() + REAP_PATIENCE;
    char path[64];
    do {
        int tasks = open(proc_path(path, guard->pid, "task"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (tasks < 0)
            return; /* the target has exited: init reaps */
        char entries[4096];
        int64_t count;
        while ((count = syscall(SYS_getdents64, tasks, entries, sizeof entries)) > 0) {
            for (int64_t at = 0; at < count;) {
                const struct dirent64 *entry = (const void *)(entries + at);
                int32_t tid = number_of(entry->d_name);
                at += entry->d_reclen;
                char state = tid ? state_of(tid) : 'X';
                if (state != 'X' && state != 'Z' && state != 'D' &&
                    reap_with(guard, tid, inner_pid, deadline)) {
                    close(tasks);
                    return;
                }
            }
        }
        close(tasks);
        if (is_gone() && state_of(guard->pid) != 'Z')
            break; /* another program, which knows nothing of it, and has no call of ours */
        sleep_until(now() + 10 * MILLISECOND);
    } while (now() < deadline && state_of(guard->child) == 'Z');
    guard->zombie = state_of(guard->child) == 'Z';
}

static void prepare(const struct fastdump_guard *guard, int32_t socket) {
    /* Their numbers may be in each other's way: first up, then down. */
    int high[] = {fcntl(socket, F_DUPFD, 16), fcntl(guard->command, F_DUPFD, 16),
                  fcntl(guard->mem, F_DUPFD, 16)};
    for (int fd = 0; fd < 3; fd++)
        dup2(high[fd], fd);
    if (syscall(SYS_close_range, CHILDREN, ~0u, 0) < 0) /* before Linux 5.9 */
        for (int fd = CHILDREN; fd < 1 << 16; fd++)
            close(fd);
    sigset_t children;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    signal(SIGCHLD, SIG_DFL); /* an ignored one would not come */
    int fd = signalfd(-1, &children, SFD_NONBLOCK | SFD_CLOEXEC);
    if (fd != CHILDREN) {
        dup2(fd, CHILDREN);
        close(fd);
    }
    setsid();
    prctl(PR_SET_NAME, "fastdump-guard");
    setpriority(PRIO_PROCESS, 0, -20); /* the target waits for us */
    write_file("/proc/self/oom_score_adj", "-1000");
}

_Noreturn static void guardian(struct fastdump_guard *guard, int32_t socket) {
    int64_t inner_pid = 0;
    prepare(guard, socket);
    int64_t error = stop_all(guard);
    if (!error)
        error = save_registers(guard);
    if (!error && is_gone())
        error = -ESRCH; /* another program has this pid now */
    guard->stop_ns = guard->started ? now() - guard->started : 0;
    if (error) {
        guard->step = FASTDUMP_STEP_STOP;
        guard->error = (int32_t)-error;
    } else if (guard->kind != FASTDUMP_FREEZE) {
        copy_by_fork(guard, &inner_pid);
        if (guard->child && guard->released) { /* others ran meanwhile: see await_call() */
            remove_copy(guard, inner_pid);
            guard->child = 0;
            guard->step = FASTDUMP_STEP_CLONE;
            guard->error = ETIME;
        }
    }
    if (error || guard->child || guard->kind == FASTDUMP_FORK_ONLY)
        release(guard);
    if (guard->child) {
        /* If memory runs out, it is the copy that has to go, not the target. */
        char path[64];
        write_file(proc_path(path, guard->child, "oom_score_adj"), "1000");
    }
    if (send(SOCKET, "", 1, MSG_NOSIGNAL) == 1)
        attend(guard);
    release(guard);
    if (guard->child)
        remove_copy(guard, inner_pid);
    /*
     * Whoever still waits in the kernel is let go by our exit. If it just comes to a call that is
     * not restarted, that ends with EINTR though no handler ran, and nobody is there to repair()
     * it.
     */
    uint64_t deadline = now() + LATE_PATIENCE;
    while (release_late(guard) && sleep_until(deadline))
        ;
    _exit(0);
}

int64_t fastdump_guard_start(struct fastdump_guard *guard, int32_t socket) {
    sigset_t all, before;
    sigfillset(&all);
    /* Not one signal, from the first moment on, and no SIGCHLD for the command. */
    sigprocmask(SIG_BLOCK, &all, &before);
    int64_t pid = syscall(SYS_clone, 0, NULL, NULL, NULL, 0);
    if (pid == 0)
        guardian(guard, socket);
    int error = errno;
    sigprocmask(SIG_SETMASK, &before, NULL);
    return pid < 0 ? -error : pid;
}
