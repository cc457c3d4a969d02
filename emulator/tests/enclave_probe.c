/* SPDX-License-Identifier: Apache-2.0
 *
 * What a test enclave needs beside busybox, in one static program:
 *   probe heartbeat [HEX]   send the heartbeat byte (or another) to the parent and wait for its echo
 *   probe report TEXT       send TEXT and a newline to the parent's exit-report port
 *   probe off               power off
 *   probe nsm               ask /dev/nsm to describe itself and print how many bytes came back
 *   probe eat MIB           use that much memory
 *   probe garbage           send 64 KiB of nothing sensible to the exit-report port, on eight connections
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int dial(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) {
        perror(path);
        exit(1);
    }
    return fd;
}

static int dial_parent(int port)
{
    int cid = 0;
    char path[100];
    FILE *self = fopen("/run/enclavekit/registry/self.json", "r");
    if (!self || fscanf(self, "{\"cid\": %d}", &cid) != 1)
        exit(2);
    fclose(self);
    snprintf(path, sizeof path, "/run/enclavekit/fabric/%d/parent/%d.sock", cid, port);
    return dial(path);
}

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    if (!strcmp(verb, "heartbeat")) {
        unsigned char sent = argc > 2 ? strtol(argv[2], 0, 16) : 0xb7, got = 0;
        int fd = dial_parent(9000);
        return write(fd, &sent, 1) != 1 || read(fd, &got, 1) != 1 || got != sent;
    }
    if (!strcmp(verb, "report") && argc > 2) {
        int fd = dial_parent(9002);
        return write(fd, argv[2], strlen(argv[2])) < 0 || write(fd, "\n", 1) != 1;
    }
    if (!strcmp(verb, "off")) {
        reboot(RB_POWER_OFF);
        perror("reboot");
        return 1;
    }
    if (!strcmp(verb, "nsm")) {
        static const char request[] = "\x6b" "DescribeNSM"; /* CBOR text of 11 bytes */
        uint32_t size = htonl(sizeof request - 1);
        int fd = dial("/dev/nsm");
        if (write(fd, &size, 4) != 4 || write(fd, request, sizeof request - 1) < 0 || read(fd, &size, 4) != 4)
            return 1;
        printf("nsm answered: %s\n", ntohl(size) > 20 ? "yes" : "no");
        return 0;
    }
    if (!strcmp(verb, "eat") && argc > 2) {
        size_t bytes = (size_t)atoi(argv[2]) << 20;
        char *memory = malloc(bytes);
        if (!memory)
            return 1;
        memset(memory, 1, bytes);
        return memory[bytes - 1] != 1;
    }
    if (!strcmp(verb, "garbage")) {
        static char junk[65536];
        memset(junk, '[', sizeof junk);
        for (int i = 0; i < 8; i++) {
            int fd = dial_parent(9002);
            if (i % 2)
                send(fd, junk, sizeof junk, MSG_DONTWAIT | MSG_NOSIGNAL);
        }
        return 0;
    }
    return 64;
}
