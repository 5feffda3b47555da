/* How many CPUs the process may use, part of library.c; ir/machine.py says the same in Python. */
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifndef TFI_CGROUPS
#define TFI_CGROUPS "/sys/fs/cgroup"
#endif
#ifndef TFI_OWN_GROUP
#define TFI_OWN_GROUP "/proc/self/cgroup"
#endif

/* The numbers in a file, microseconds of CPU time and of the period that they are for; 0 for what is no number above 0 ("max": no limit). */
static void tfi_numbers(const char *path, long long *first, long long *second) {
    FILE *file = fopen(path, "r");
    *first = *second = 0;
    if (file == NULL) return;
    if (fscanf(file, "%lld %lld", first, second) < 1 || *first < 0) *first = 0;
    fclose(file);
}

static int tfi_limited(int count, long long quota, long long period) {
    if (quota <= 0 || period <= 0) return count;
    return quota / period + (quota % period != 0) < count ? (int)(quota / period + (quota % period != 0)) : count;
}

/* The path of the process's own cgroup of version 2, without the last slash; "" for the root. */
static void tfi_own_group(char *group, size_t room) {
    FILE *file = fopen(TFI_OWN_GROUP, "r");
    char line[4096];
    size_t length;
    group[0] = 0;
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, "0::/", 4) == 0) {
            snprintf(group, room, "%s", line + 3);
            break;
        }
    if (file != NULL) fclose(file);
    for (length = strlen(group); length > 0 && (group[length - 1] == '\n' || group[length - 1] == '/'); length--) group[length - 1] = 0;
}

/* `count`, or less where a cgroup has a smaller quota of CPU time: version 2 in the process's own group and those around it, version 1 at its root. */
static int tfi_within_quotas(int count) {
    char group[4096], path[4200], *last;
    long long quota, period, nothing;
    tfi_own_group(group, sizeof group);
    for (;;) {
        snprintf(path, sizeof path, "%s%s/cpu.max", TFI_CGROUPS, group);
        tfi_numbers(path, &quota, &period);
        count = tfi_limited(count, quota, period);
        last = strrchr(group, '/');
        if (last == NULL) break;
        *last = 0;
    }
    tfi_numbers(TFI_CGROUPS "/cpu/cpu.cfs_quota_us", &quota, &nothing);
    tfi_numbers(TFI_CGROUPS "/cpu/cpu.cfs_period_us", &period, &nothing);
    return tfi_limited(count, quota, period);
}

static int tfi_cpus(void) {
    cpu_set_t set;
    long n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : sysconf(_SC_NPROCESSORS_ONLN);
    return tfi_within_quotas(n > 0 ? (int)n : 1);
}
