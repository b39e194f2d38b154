/* The floor: the least a user-space program can spend on putting requests on connections and taking the answers off
 * again: one send() and one recv() per request, nothing else. No capture, no parsing, no epoll.
 *
 * It works in bursts: send on `burst` connections, then collect their answers, then sleep until the next interval
 * (0: never sleep). burst = connections and interval 0 is the floor at saturation; burst = 1 and an interval of 1/rate
 * is an evenly paced load generator.
 *
 *     floor ADDRESS PORT CONNECTIONS BURST INTERVAL_NS SECONDS [MODE [ACTIVE [hold|cold [WARM_UP_S]]]] < request
 *
 * MODE: keep (the default) as above; once: a connection for each request, until the server closes it; open: an open-loop
 * generator, which sends by the clock and never waits for an answer (those that have come are taken off first).
 * ACTIVE: only so many of the connections are used, after one request on each.
 * hold: keeps its connections until it is killed, so that nobody's cost of closing them is measured.
 * cold: sends copies of the request from all over COLD_BYTES of memory, one after the other, so that the bytes come from
 * memory, as a mirror's do, and not from the processor's cache.
 * WARM_UP_S: does the same for so long before, then stops itself (SIGSTOP) until it is told to continue (SIGCONT), so that
 * whoever measures has looked at all counters before SECONDS begin, however long that takes.
 *
 * Says "ready" on standard error when its connections are up, and prints one line of JSON: requests (those of the warm-up,
 * too), elapsed_s, user_s, system_s, late (bursts that began after their time). Only the loop is measured. An answer must fit one recv() buffer
 * and arrive as one segment, which holds for the small answers the benchmark's servers give.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define COLD_BYTES ((size_t)64 << 20)

static char request[2 << 20], answer[1 << 16];
static char *copies = request; /* requests one after the other, `copies_bytes` in all */
static size_t length, copies_bytes, next_copy;
static struct sockaddr_in address = {.sin_family = AF_INET};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static long long now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static double seconds(struct timeval from, struct timeval to)
{
    return (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_usec - from.tv_usec) / 1e6;
}

static int dial(void)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void put(int fd)
{
    if (send(fd, copies + next_copy, length, 0) != (ssize_t)length)
        die("send");
    next_copy += length;
    if (next_copy == copies_bytes)
        next_copy = 0;
}

static void take(int fd)
{
    if (recv(fd, answer, sizeof answer, 0) <= 0)
        die("recv");
}

int main(int argc, char **argv)
{
    if (argc < 7 || argc > 11) {
        fprintf(stderr, "usage: floor ADDRESS PORT CONNECTIONS BURST INTERVAL_NS SECONDS [MODE [ACTIVE [hold|cold [WARM_UP_S]]]]"
                        " < request\n");
        return 2;
    }
    int connections = atoi(argv[3]), burst = atoi(argv[4]);
    long long interval = atoll(argv[5]), duration = (long long)(atof(argv[6]) * 1e9);
    long long warm_up = argc > 10 ? (long long)(atof(argv[10]) * 1e9) : 0;
    const char *mode = argc > 7 ? argv[7] : "keep";
    int once = strcmp(mode, "once") == 0, open_loop = strcmp(mode, "open") == 0;
    int active = argc > 8 ? atoi(argv[8]) : connections;
    if (active < 1 || active > connections || burst < 1 || burst > active) {
        fprintf(stderr, "floor: 1 <= BURST <= ACTIVE <= CONNECTIONS\n");
        return 2;
    }
    ssize_t n;
    while ((n = read(0, request + length, sizeof request - length)) > 0)
        length += (size_t)n;
    copies_bytes = length;
    if (length > 0 && argc > 9 && strcmp(argv[9], "cold") == 0) {
        copies_bytes = COLD_BYTES / length * length;
        copies = malloc(copies_bytes);
        if (copies == NULL)
            die("malloc");
        for (size_t at = 0; at < copies_bytes; at += length)
            memcpy(copies + at, request, length);
    }
    address.sin_port = htons((unsigned short)atoi(argv[2]));
    if (inet_pton(AF_INET, argv[1], &address.sin_addr) != 1)
        die("inet_pton");
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    int *sockets = calloc((size_t)connections, sizeof *sockets);
    if (sockets == NULL)
        die("calloc");
    for (int i = 0; i < connections && !once; i++) {
        sockets[i] = dial();
        if (active < connections) {
            put(sockets[i]);
            take(sockets[i]);
        }
    }
    fprintf(stderr, "ready\n");

    struct rusage before, after;
    long long requests = 0, late = 0;
    int first = 0;
    getrusage(RUSAGE_SELF, &before);
    long long start = now_ns(), due = start, now = start;
    while (warm_up || now - start < duration) {
        if (warm_up && now - start >= warm_up) {
            raise(SIGSTOP);
            warm_up = 0;
            getrusage(RUSAGE_SELF, &before);
            start = due = now = now_ns();
        }
        for (int i = 0, c = first; i < burst; i++, c = c + 1 == active ? 0 : c + 1) {
            if (once)
                sockets[c] = dial();
            if (open_loop)
                while (recv(sockets[c], answer, sizeof answer, MSG_DONTWAIT) == sizeof answer)
                    ;
            put(sockets[c]);
        }
        for (int i = 0; i < burst; i++, first = first + 1 == active ? 0 : first + 1) {
            if (open_loop)
                continue;
            take(sockets[first]);
            if (once) {
                while (recv(sockets[first], answer, sizeof answer, 0) > 0)
                    ;
                close(sockets[first]);
            }
        }
        requests += burst;
        now = now_ns();
        if (interval) {
            due += interval;
            late += now > due;
            struct timespec until = {due / 1000000000LL, due % 1000000000LL};
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
            now = now_ns();
        }
    }
    getrusage(RUSAGE_SELF, &after);
    printf("{\"requests\": %lld, \"elapsed_s\": %.6f, \"user_s\": %.6f, \"system_s\": %.6f, \"late\": %lld}\n", requests,
           (double)(now - start) / 1e9, seconds(before.ru_utime, after.ru_utime), seconds(before.ru_stime, after.ru_stime),
           late);
    fflush(stdout);
    while (argc > 9 && strcmp(argv[9], "hold") == 0)
        pause();
    return 0;
}
