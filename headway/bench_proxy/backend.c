/* An engine that answers at once: OpenAI bodies by script, on several ports, one thread.
 *
 *   backend FIRST_PORT PORTS
 *
 * A body with "stream":true gets "max_tokens" events, each a chunk and a write of its own, the connections in turn; with
 * "seed" above 0 one every so many milliseconds. Any other POST gets one small completion, a GET what routers ask before they
 * trust a worker. Data is acknowledged at once (TCP_QUICKACK): a router without TCP_NODELAY is measured, not its timer. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FDS_MAX 65536
#define LISTENERS_MAX 64

struct connection {
    char *in;
    size_t size, room;
    int left, pace_ms;    /* events still to be written */
    long long due_ms;
};

static struct connection *connections[FDS_MAX];
static int streaming[FDS_MAX], streams;
static char plain[1024], event[1024], last[1024], models[512];
static size_t plain_size, event_size, last_size, models_size;

static long long now_ms(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000LL + at.tv_nsec / 1000000;
}

static size_t with_head(char *out, size_t room, const char *body) {
    return snprintf(out, room, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
                    strlen(body), body);
}

static size_t as_chunk(char *out, size_t room, const char *text, const char *end) {
    return snprintf(out, room, "%zx\r\n%s\r\n%s", strlen(text), text, end);
}

static void prepare(void) {
    plain_size = with_head(plain, sizeof plain,
        "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,"
        "\"message\":{\"role\":\"assistant\",\"content\":\"hello\"},\"finish_reason\":\"stop\"}],"
        "\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":1,\"total_tokens\":6}}");
    models_size = with_head(models, sizeof models,
        "{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\"model\",\"created\":1,\"owned_by\":\"bench\"}],"
        "\"model_path\":\"m\",\"served_model_name\":\"m\",\"is_generation\":true,\"version\":\"0\"}");
    event_size = as_chunk(event, sizeof event,
        "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":"
        "[{\"index\":0,\"delta\":{\"content\":\"word \"},\"logprobs\":null,\"finish_reason\":null}]}\n\n", "");
    last_size = as_chunk(last, sizeof last,
        "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":"
        "[{\"index\":0,\"delta\":{\"content\":\"end\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n", "0\r\n\r\n");
}

static int number_after(const char *body, const char *name) {
    const char *at = strstr(body, name);
    return at ? atoi(at + strlen(name) + strspn(at + strlen(name), " :")) : 0;
}

static int wants_stream(const char *body) {
    const char *at = strstr(body, "\"stream\"");
    return at && at[8 + strspn(at + 8, " :")] == 't';
}

static void put(int fd, const char *data, size_t size) {
    while (size) { /* a full socket buffer is waited for: what is sent is small */
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return;
        if (sent > 0) data += sent, size -= sent;
    }
}

static void answer(int fd, struct connection *of, char *head, char *body) {
    if (!strncmp(head, "GET ", 4)) {
        put(fd, models, models_size);
    } else if (!wants_stream(body)) {
        put(fd, plain, plain_size);
    } else {
        static const char stream_head[] =
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
        put(fd, stream_head, sizeof stream_head - 1);
        of->left = number_after(body, "\"max_tokens\"");
        of->pace_ms = number_after(body, "\"seed\"");
        of->due_ms = now_ms() + of->pace_ms;
        streaming[streams++] = fd;
    }
}

static void leave(int fd) {
    for (int i = 0; i < streams; i++)
        if (streaming[i] == fd) streaming[i--] = streaming[--streams];
    free(connections[fd]->in);
    free(connections[fd]);
    connections[fd] = NULL;
    close(fd);
}

static void serve(int fd) {
    struct connection *of = connections[fd];
    if (of->room - of->size < 16384) of->in = realloc(of->in, of->room = 2 * of->room + 32768);
    ssize_t got = recv(fd, of->in + of->size, of->room - of->size - 1, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) { leave(fd); return; }
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof one);
    of->in[of->size += got] = 0;
    char *end;
    while (!of->left && (end = memmem(of->in, of->size, "\r\n\r\n", 4))) {
        *end = 0;
        char *length = strcasestr(of->in, "\r\ncontent-length:");
        size_t body = length ? strtoul(length + 17, NULL, 10) : 0, whole = end + 4 - of->in + body;
        *end = '\r';
        if (of->size < whole) break;
        char kept = of->in[whole];
        of->in[whole] = 0;
        answer(fd, of, of->in, end + 4);
        of->in[whole] = kept;
        memmove(of->in, of->in + whole, (of->size -= whole) + 1);
    }
}

static void write_events(void) {
    long long now = now_ms();
    for (int i = 0; i < streams; i++) {
        int fd = streaming[i];
        struct connection *of = connections[fd];
        if (of->pace_ms && of->due_ms > now) continue;
        of->due_ms += of->pace_ms;
        if (--of->left > 0) {
            put(fd, event, event_size);
        } else {
            put(fd, last, last_size);
            of->left = 0;
            streaming[i--] = streaming[--streams];
        }
    }
}

static int patience_ms(void) {
    int paced = 0;
    for (int i = 0; i < streams; i++) {
        if (!connections[streaming[i]]->pace_ms) return 0;
        paced = 1;
    }
    return paced ? 1 : -1;
}

int main(int count, char **arguments) {
    if (count != 3) return 2;
    int first = atoi(arguments[1]), ports = atoi(arguments[2]), poll = epoll_create1(0), listeners[LISTENERS_MAX], one = 1;
    if (ports > LISTENERS_MAX) return 2;
    prepare();
    for (int i = 0; i < ports; i++) {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(first + i), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        listeners[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        setsockopt(listeners[i], SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(listeners[i], (struct sockaddr *)&at, sizeof at) || listen(listeners[i], 4096)) return 1;
        struct epoll_event wanted = {.events = EPOLLIN, .data.fd = -1 - i};
        epoll_ctl(poll, EPOLL_CTL_ADD, listeners[i], &wanted);
    }
    for (;;) {
        struct epoll_event ready[512];
        int found = epoll_wait(poll, ready, 512, patience_ms());
        for (int i = 0; i < found; i++) {
            if (ready[i].data.fd >= 0) {
                if (connections[ready[i].data.fd]) serve(ready[i].data.fd);
                continue;
            }
            int fd = accept4(listeners[-1 - ready[i].data.fd], NULL, NULL, SOCK_NONBLOCK);
            if (fd < 0) continue;
            if (fd >= FDS_MAX) { close(fd); continue; }
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            connections[fd] = calloc(1, sizeof(struct connection));
            struct epoll_event wanted = {.events = EPOLLIN, .data.fd = fd};
            epoll_ctl(poll, EPOLL_CTL_ADD, fd, &wanted);
        }
        write_events();
    }
}
