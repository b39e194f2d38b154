/* The floor: the least a user-space program can spend on putting requests on keep-alive connections and taking the
 * answers off again: one send() and one recv() per request, nothing else. No capture, no parsing, no epoll.
 *
 * It works in bursts: send on `burst` connections, then collect their answers, then sleep until the next interval
 * (0: never sleep). burst = connections and interval 0 is the floor at saturation; burst = 1 and an interval of 1/rate
 * is an evenly paced load generator.
 *
 *     floor ADDRESS PORT CONNECTIONS BURST INTERVAL_NS SECONDS < request
 *
 * Prints one line of JSON: requests, elapsed_s, user_s, system_s, late (bursts that began after their time).
 * Only the loop is measured: connecting is not. An answer must fit one recv() buffer and arrive as one segment, which
 * holds for the small answers the benchmark's servers give.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

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

int main(int argc, char **argv)
{
    if (argc != 7) {
        fprintf(stderr, "usage: floor ADDRESS PORT CONNECTIONS BURST INTERVAL_NS SECONDS < request\n");
        return 2;
    }
    int connections = atoi(argv[3]), burst = atoi(argv[4]);
    long long interval = atoll(argv[5]), duration = (long long)(atof(argv[6]) * 1e9);
    if (connections < 1 || burst < 1 || burst > connections) {
        fprintf(stderr, "floor: BURST must be between 1 and CONNECTIONS\n");
        return 2;
    }
    static char request[1 << 16], answer[1 << 16];
    ssize_t length = 0, n;
    while ((n = read(0, request + length, sizeof request - (size_t)length)) > 0)
        length += n;

    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[2]))};
    if (inet_pton(AF_INET, argv[1], &address.sin_addr) != 1)
        die("inet_pton");
    int *sockets = calloc((size_t)connections, sizeof *sockets), one = 1;
    if (sockets == NULL)
        die("calloc");
    for (int i = 0; i < connections; i++) {
        sockets[i] = socket(AF_INET, SOCK_STREAM, 0);
        if (sockets[i] < 0 || connect(sockets[i], (struct sockaddr *)&address, sizeof address) != 0)
            die("connect");
        setsockopt(sockets[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }

    struct rusage before, after;
    long long requests = 0, late = 0;
    int first = 0;
    getrusage(RUSAGE_SELF, &before);
    long long start = now_ns(), due = start, now = start;
    while (now - start < duration) {
        for (int i = 0, c = first; i < burst; i++, c = c + 1 == connections ? 0 : c + 1)
            if (send(sockets[c], request, (size_t)length, 0) != length)
                die("send");
        for (int i = 0; i < burst; i++, first = first + 1 == connections ? 0 : first + 1)
            if (recv(sockets[first], answer, sizeof answer, 0) <= 0)
                die("recv");
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
    return 0;
}
