// SPDX-License-Identifier: GPL-2.0-only
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <linux/compiler.h>
#include <linux/errno.h>
#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/sizes.h>

#include <libvfio.h>

/* Runtime power management acts at once, but on its own time. */
#define SUSPEND_LIMIT_MS	10000

/* Where a fault of this thread shall end, if it is in the middle of a try. */
static __thread void *fault_env;
static __thread const void *fault_addr;

static void fault_handler(int sig, siginfo_t *info, void *ucontext)
{
	const void *addr = READ_ONCE(fault_addr);
	void *env = READ_ONCE(fault_env);
	bool hit = info->si_addr >= addr && info->si_addr < addr + sizeof(u32);

	/* A dead BAR is no hardware error, and nothing else may be dead. */
	if (env && hit && (sig == SIGSEGV || info->si_code == BUS_ADRERR))
		siglongjmp(*(sigjmp_buf *)env, sig);

	signal(sig, SIG_DFL);
	raise(sig);
}

static void fault_handler_install(void)
{
	struct sigaction action = {
		.sa_sigaction = fault_handler,
		.sa_flags = SA_SIGINFO,
	};

	VFIO_ASSERT_EQ(sigaction(SIGBUS, &action, NULL), 0);
	VFIO_ASSERT_EQ(sigaction(SIGSEGV, &action, NULL), 0);
}

static int mmio_try32(void *addr, u32 *value, bool write)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	sigjmp_buf env;
	int sig;

	pthread_once(&once, fault_handler_install);

	sig = sigsetjmp(env, 1);
	if (!sig) {
		WRITE_ONCE(fault_addr, addr);
		WRITE_ONCE(fault_env, &env);

		if (write)
			writel(*value, addr);
		else
			*value = readl(addr);
	}

	/* Not before the access, which is a volatile one as well. */
	WRITE_ONCE(fault_env, NULL);

	switch (sig) {
	case 0:
		return 0;
	case SIGSEGV:
		return -EACCES;
	default:
		return -EFAULT;
	}
}

int __mmio_read32(const void *addr, u32 *value)
{
	return mmio_try32((void *)addr, value, false);
}

int __mmio_write32(void *addr, u32 value)
{
	return mmio_try32(addr, &value, true);
}

static void *repeater_run(void *arg)
{
	struct repeater *repeater = arg;

	while (!READ_ONCE(repeater->stop)) {
		if (!repeater->once(repeater->arg))
			repeater->nr_failed++;
		WRITE_ONCE(repeater->nr_rounds, repeater->nr_rounds + 1);
	}

	return NULL;
}

void repeater_start(struct repeater *repeater, bool (*once)(void *arg), void *arg)
{
	*repeater = (struct repeater) { .once = once, .arg = arg };
	VFIO_ASSERT_EQ(pthread_create(&repeater->thread, NULL, repeater_run, repeater), 0);
}

void repeater_wait(struct repeater *repeater)
{
	/* The round that is under way may have begun before. */
	u64 enough = READ_ONCE(repeater->nr_rounds) + 2;

	while (READ_ONCE(repeater->nr_rounds) < enough)
		sched_yield();
}

void repeater_stop(struct repeater *repeater)
{
	WRITE_ONCE(repeater->stop, true);
	VFIO_ASSERT_EQ(pthread_join(repeater->thread, NULL), 0);
}

static bool mmio_reader_once(void *arg)
{
	struct mmio_reader *reader = arg;
	u32 value;
	int r;

	r = __mmio_read32(reader->addr + reader->offset, &value);
	reader->offset += getpagesize();
	if (reader->offset >= reader->size)
		reader->offset = 0;

	return !r;
}

void mmio_reader_start(struct mmio_reader *reader, const void *addr, u64 size)
{
	*reader = (struct mmio_reader) { .addr = addr, .size = size };
	repeater_start(&reader->repeater, mmio_reader_once, reader);
}

/*
 * Whether a device sleeps. Any call of its driver would wake it up, therefore
 * this asks the kernel's power management.
 */
static bool vfio_pci_is_suspended(struct vfio_pci_device *device)
{
	char path[PATH_MAX], status[16] = "";
	FILE *file;
	int nr;

	snprintf_assert(path, sizeof(path), "/sys/bus/pci/devices/%s/power/runtime_status",
			device->bdf);
	file = fopen(path, "r");
	VFIO_ASSERT_NOT_NULL(file);
	nr = fscanf(file, "%15s", status);
	VFIO_ASSERT_EQ(nr, 1);
	VFIO_ASSERT_EQ(fclose(file), 0);
	return !strcmp(status, "suspended");
}

int __vfio_pci_wait_suspended(struct vfio_pci_device *device)
{
	int attempts = SUSPEND_LIMIT_MS;

	while (!vfio_pci_is_suspended(device)) {
		if (!attempts--)
			return -ETIMEDOUT;
		usleep(1000);
	}

	return 0;
}

static bool vma_info_parse(const char *line, struct vma_info *info)
{
	unsigned long long offset;
	int name = 0;

	if (sscanf(line, "%lx-%lx %4s %llx %*x:%*x %*u %n", &info->start, &info->end,
		   info->perms, &offset, &name) != 4)
		return false;

	info->offset = offset;

	/* Cut off a name that is longer than anybody asks for. */
	snprintf(info->name, sizeof(info->name), "%s", line + name);
	info->name[strcspn(info->name, "\n")] = '\0';
	return true;
}

static bool vma_info_contains(struct vma_info *info, const void *vaddr)
{
	return (unsigned long)vaddr >= info->start && (unsigned long)vaddr < info->end;
}

int __vma_info_get_of(pid_t pid, const void *vaddr, struct vma_info *info)
{
	char path[32], line[1024];
	int ret = -ENOENT;
	FILE *file;

	snprintf_assert(path, sizeof(path), "/proc/%d/maps", pid);
	file = fopen(path, "r");
	VFIO_ASSERT_NOT_NULL(file);

	while (fgets(line, sizeof(line), file)) {
		VFIO_ASSERT_TRUE(vma_info_parse(line, info), "Cannot parse: %s\n", line);
		if (vma_info_contains(info, vaddr)) {
			ret = 0;
			break;
		}
	}

	fclose(file);
	return ret;
}

int __vma_info_get(const void *vaddr, struct vma_info *info)
{
	return __vma_info_get_of(getpid(), vaddr, info);
}

bool vma_has_flag(const void *vaddr, const char *flag)
{
	char line[1024], *token, *rest;
	bool in_vma = false, found = false;
	struct vma_info info;
	FILE *file;

	file = fopen("/proc/self/smaps", "r");
	VFIO_ASSERT_NOT_NULL(file);

	while (!found && fgets(line, sizeof(line), file)) {
		if (vma_info_parse(line, &info))
			in_vma = vma_info_contains(&info, vaddr);

		if (!in_vma || strncmp(line, "VmFlags:", strlen("VmFlags:")))
			continue;

		rest = line + strlen("VmFlags:");
		while ((token = strtok_r(rest, "\n ", &rest)))
			found |= !strcmp(token, flag);
	}

	fclose(file);
	return found;
}

#if defined(__x86_64__)
/* One line of the dump: a range of addresses with equal translations. */
struct ptdump_line {
	u64 start;
	u64 end;
	struct page_mapping mapping;
};

static u64 ptdump_level_size(const char *level)
{
	if (!strcmp(level, "pte"))
		return SZ_4K;
	if (!strcmp(level, "pmd"))
		return SZ_2M;
	if (!strcmp(level, "pud"))
		return SZ_1G;
	return 0;
}

/* Linux' assignment of the PAT bits, which are an index into a table. */
static enum memory_type ptdump_memory_type(bool pwt, bool pcd, bool pat)
{
	if (pcd)
		return pat && pwt ? MEMORY_TYPE_UNKNOWN : MEMORY_TYPE_UNCACHED;
	if (pat)
		return MEMORY_TYPE_UNKNOWN;
	return pwt ? MEMORY_TYPE_WRITE_COMBINING : MEMORY_TYPE_CACHED;
}

static bool ptdump_parse(char *line, struct ptdump_line *out)
{
	bool present = false, pwt = false, pcd = false, pat = false;
	char *token, *rest, *level = "";
	int fields;

	*out = (struct ptdump_line) {};

	if (sscanf(line, "0x%lx-0x%lx %*s %n", &out->start, &out->end, &fields) != 2)
		return false;

	rest = line + fields;
	while ((token = strtok_r(rest, "\n ", &rest))) {
		present |= !strcmp(token, "RW") || !strcmp(token, "ro");
		out->mapping.writable |= !strcmp(token, "RW");
		pwt |= !strcmp(token, "PWT");
		pcd |= !strcmp(token, "PCD");
		pat |= !strcmp(token, "PAT");
		level = token;
	}

	if (!present) {
		out->mapping = (struct page_mapping) {};
		return true;
	}

	out->mapping.size = ptdump_level_size(level);
	out->mapping.type = ptdump_memory_type(pwt, pcd, pat);
	return true;
}

int __page_tables_open(void)
{
	int fd = open("/sys/kernel/debug/page_tables/current_kernel", O_RDONLY | O_CLOEXEC);

	return fd < 0 ? -EOPNOTSUPP : fd;
}

/* The dump is made by reading from its beginning. */
static FILE *ptdump_begin(int fd)
{
	FILE *file = fdopen(dup(fd), "r");

	VFIO_ASSERT_NOT_NULL(file);
	rewind(file);
	return file;
}

int __page_mapping_get_from(int fd, const void *vaddr, struct page_mapping *mapping)
{
	struct ptdump_line dump;
	char line[256];
	FILE *file;

	file = ptdump_begin(fd);
	*mapping = (struct page_mapping) {};

	while (fgets(line, sizeof(line), file)) {
		if (!ptdump_parse(line, &dump))
			continue;

		if ((unsigned long)vaddr >= dump.start && (unsigned long)vaddr < dump.end)
			*mapping = dump.mapping;
	}

	fclose(file);
	return 0;
}

int __page_mapping_get(const void *vaddr, struct page_mapping *mapping)
{
	int fd = __page_tables_open();
	int ret;

	if (fd < 0)
		return fd;

	ret = __page_mapping_get_from(fd, vaddr, mapping);
	close(fd);
	return ret;
}

/* @page_size is 0 for all sizes. */
static long ptdump_count(const void *vaddr, u64 size, u64 page_size)
{
	u64 start = (unsigned long)vaddr, end = start + size;
	int fd = __page_tables_open();
	struct ptdump_line dump;
	char line[256];
	long count = 0;
	FILE *file;

	if (fd < 0)
		return fd;

	file = ptdump_begin(fd);
	close(fd);

	while (fgets(line, sizeof(line), file)) {
		if (!ptdump_parse(line, &dump) || !dump.mapping.size)
			continue;
		if (page_size && page_size != dump.mapping.size)
			continue;

		dump.start = max(dump.start, start);
		dump.end = min(dump.end, end);
		if (dump.start >= dump.end)
			continue;

		/* Some of them may reach beyond the span. */
		if (page_size)
			count += (dump.end - dump.start) / page_size;
		else
			count += DIV_ROUND_UP(dump.end, dump.mapping.size) -
				 dump.start / dump.mapping.size;
	}

	fclose(file);
	return count;
}
#else
int __page_tables_open(void)
{
	return -EOPNOTSUPP;
}

int __page_mapping_get_from(int fd, const void *vaddr, struct page_mapping *mapping)
{
	return -EOPNOTSUPP;
}

int __page_mapping_get(const void *vaddr, struct page_mapping *mapping)
{
	return -EOPNOTSUPP;
}

static long ptdump_count(const void *vaddr, u64 size, u64 page_size)
{
	return -EOPNOTSUPP;
}
#endif

static bool cpu_has_flag(const char *flag)
{
	char line[8192], *token, *rest;
	bool found = false;
	FILE *file;

	file = fopen("/proc/cpuinfo", "r");
	VFIO_ASSERT_NOT_NULL(file);

	while (!found && fgets(line, sizeof(line), file)) {
		if (strncmp(line, "flags\t", strlen("flags\t")))
			continue;

		rest = line;
		while ((token = strtok_r(rest, "\n ", &rest)))
			found |= !strcmp(token, flag);
	}

	fclose(file);
	return found;
}

bool has_huge_pages(u64 page_size)
{
	unsigned long pmd_size;
	FILE *file;
	int n;

	file = fopen("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "r");
	if (!file)
		return false;

	n = fscanf(file, "%lu", &pmd_size);
	VFIO_ASSERT_EQ(n, 1);
	fclose(file);
	return page_size == pmd_size || (page_size == SZ_1G && cpu_has_flag("pdpe1gb"));
}

long __page_mapping_count(const void *vaddr, u64 size, u64 page_size)
{
	return ptdump_count(vaddr, size, page_size);
}

long __page_mapping_count_all(const void *vaddr, u64 size)
{
	return ptdump_count(vaddr, size, 0);
}
