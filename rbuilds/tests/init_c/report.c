/* SPDX-License-Identifier: Apache-2.0 */
/* The program of a tested machine: says as JSON how it was started, leaves an orphan to PID 1, exits with 7. */
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

static void list(const char *name, char **values)
{
	const char *comma = "";

	printf("\"%s\": [", name);
	for (; *values; values++, comma = ", ")
		printf("%s\"%s\"", comma, *values);
	printf("], ");
}

/* Return whether PID 1 has reaped a grandchild of ours; alarm() ends us if it never does. */
static int orphan_is_reaped(void)
{
	int ends[2], child;
	pid_t orphan = 0;

	if (pipe(ends) < 0)
		return 0;
	child = fork();
	if (child == 0) {
		orphan = fork();
		if (orphan == 0)
			_exit(0);
		if (write(ends[1], &orphan, sizeof(orphan)) < 0)
			_exit(1);
		_exit(0);
	}
	if (read(ends[0], &orphan, sizeof(orphan)) != sizeof(orphan))
		return 0;
	alarm(30);
	/* our child, which nobody waits for, stays; its own child is PID 1's once it has ended */
	while (kill(orphan, 0) == 0)
		sched_yield();
	return errno == ESRCH;
}

int main(int argc, char **argv)
{
	static const char *places[] = {"/proc/self", "/sys/kernel", "/dev/shm", "/dev/pts/ptmx", "/dev/fd", "/run", "/tmp"};
	char cwd[256] = "";
	gid_t groups[64];
	int count = getgroups(64, groups), i, there = 0;
	struct stat status;
	sigset_t blocked;

	(void)argc;
	for (i = 0; i < 7; i++)
		there += stat(places[i], &status) == 0;
	sigprocmask(SIG_SETMASK, NULL, &blocked);
	printf("{");
	list("argv", argv);
	list("env", environ);
	printf("\"cwd\": \"%s\", \"uid\": %d, \"gid\": %d, ", getcwd(cwd, sizeof(cwd)), getuid(), getgid());
	printf("\"groups\": %d, \"parent\": %d, \"places\": %d, ", count, getppid(), there);
	printf("\"blocked\": %d, ", sigismember(&blocked, SIGTERM));
	printf("\"leader\": %d, \"reaped\": %d}\n", getsid(0) == getpid(), orphan_is_reaped());
	return 7;
}
