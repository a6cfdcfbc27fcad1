/* Answers what libseccomp makes of a profile: the judge of the compiler's tests.
 * Reads profiles as lines of words, writes the length (uint32_t) and the program of each.
 *   default ACTION | arch x86|x32 | rule ACTION NAME COUNT (INDEX OP A B)... | end
 */
#include <errno.h>
#include <seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void fail(const char *what, const char *name, int code)
{
	fprintf(stderr, "oracle: %s %s: %s\n", what, name, strerror(-code));
	exit(1);
}

static int operator_of(const char *name)
{
	static const char *const names[] = {"ne", "lt", "le", "eq", "ge", "gt", "masked"};
	static const int values[] = {SCMP_CMP_NE, SCMP_CMP_LT, SCMP_CMP_LE, SCMP_CMP_EQ,
				     SCMP_CMP_GE, SCMP_CMP_GT, SCMP_CMP_MASKED_EQ};
	for (int i = 0; i < 7; i++)
		if (!strcmp(name, names[i]))
			return values[i];
	fail("operator", name, -EINVAL);
	return 0;
}

int main(void)
{
	static char line[4096];
	scmp_filter_ctx filter = NULL;
	while (fgets(line, sizeof(line), stdin)) {
		char *word = strtok(line, " \n");
		if (!strcmp(word, "default")) {
			filter = seccomp_init((uint32_t)strtoul(strtok(NULL, " \n"), NULL, 0));
			if (!filter)
				fail("init", "", -EINVAL);
		} else if (!strcmp(word, "arch")) {
			char *name = strtok(NULL, " \n");
			int code = seccomp_arch_add(filter, seccomp_arch_resolve_name(name));
			if (code < 0)
				fail("arch", name, code);
		} else if (!strcmp(word, "rule")) {
			uint32_t action = (uint32_t)strtoul(strtok(NULL, " \n"), NULL, 0);
			char *name = strtok(NULL, " \n");
			unsigned count = (unsigned)strtoul(strtok(NULL, " \n"), NULL, 0);
			struct scmp_arg_cmp args[6];
			for (unsigned i = 0; i < count; i++) {
				args[i].arg = (unsigned)strtoul(strtok(NULL, " \n"), NULL, 0);
				args[i].op = operator_of(strtok(NULL, " \n"));
				args[i].datum_a = strtoull(strtok(NULL, " \n"), NULL, 0);
				args[i].datum_b = strtoull(strtok(NULL, " \n"), NULL, 0);
			}
			int number = seccomp_syscall_resolve_name(name);
			if (number == __NR_SCMP_ERROR)
				continue;
			int code = seccomp_rule_add_array(filter, action, number, count, args);
			if (code < 0)
				fail("rule", name, code);
		} else if (!strcmp(word, "end")) {
			FILE *program = tmpfile();
			int code = seccomp_export_bpf(filter, fileno(program));
			if (code < 0)
				fail("export", "", code);
			seccomp_release(filter);
			uint32_t length = (uint32_t)lseek(fileno(program), 0, SEEK_END);
			char *bytes = malloc(length);
			if (pread(fileno(program), bytes, length, 0) != (ssize_t)length)
				fail("read", "", -EIO);
			fwrite(&length, sizeof(length), 1, stdout);
			fwrite(bytes, 1, length, stdout);
			fflush(stdout);
			free(bytes);
			fclose(program);
		}
	}
	return 0;
}
