/* A GPU's driver that is none: the entry points that the runtime calls, on the memory of the CPU, by the layouts of the makers' headers.

   It is written from the API references, not from the runtime's tables, so that the two check each other. Compiled with -DHIP it is libamdhip64, else
   libcuda. What is wrong with a call is kept in fake_wrong; every call is counted. Kernels are handed to the callback of the test. */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST 4096
#define EXPORT __attribute__((visibility("default")))

typedef void (*kernel_callback)(const char *name, unsigned grid, unsigned block, unsigned shared, void **parameters);

EXPORT char fake_wrong[1024];
EXPORT int fake_devices = 1, fake_major = 9, fake_minor = 0, fake_fail_after = -1, fake_fail_with = 2;
EXPORT long fake_blocks, fake_modules, fake_streams, fake_graphs, fake_execs, fake_depth, fake_calls, fake_updates, fake_graph_launches, fake_shared;
EXPORT kernel_callback fake_kernel;

static int initialised;
static void *blocks[MOST];
static size_t sizes[MOST];

static int wrong(const char *what) {
    if (!fake_wrong[0]) snprintf(fake_wrong, sizeof fake_wrong, "%s", what);
    return 1; /* CUDA_ERROR_INVALID_VALUE, hipErrorInvalidValue */
}

/* Counts a call; the one that the test wants to fail fails. */
#define ENTER(context)                                                                                    \
    do {                                                                                                  \
        fake_calls++;                                                                                     \
        if (fake_fail_after >= 0 && fake_fail_after-- == 0) return fake_fail_with;                        \
        if (!initialised) return wrong("a call before the driver was initialised");                       \
        if ((context) && fake_depth != 1) return wrong("a call without a current context");               \
    } while (0)

static int inside(uintptr_t at, size_t size) {
    for (int i = 0; i < MOST; i++)
        if (blocks[i] && at >= (uintptr_t)blocks[i] && at + size <= (uintptr_t)blocks[i] + sizes[i]) return 1;
    return 0;
}

#ifdef HIP
#define NAME(cuda, hip) hip
#else
#define NAME(cuda, hip) cuda
#endif

EXPORT int NAME(cuInit, hipInit)(unsigned flags) {
    fake_calls++;
    if (flags) return wrong("flags of init");
    initialised = 1;
    return 0;
}

EXPORT int NAME(cuDeviceGetCount, hipGetDeviceCount)(int *count) { ENTER(0); *count = fake_devices; return 0; }
EXPORT int NAME(cuDeviceGet, hipDeviceGet)(int *device, int ordinal) { ENTER(0); *device = 40 + ordinal; return 0; }
EXPORT int NAME(cuDeviceGetName, hipDeviceGetName)(char *name, int length, int device) {
    ENTER(0);
    if (device != 40) return wrong("another device");
    snprintf(name, length, "Fake GPU");
    return 0;
}

#ifdef HIP
static int current = 7;
EXPORT int hipGetDevice(int *device) { ENTER(0); *device = current; return 0; }
EXPORT int hipSetDevice(int device) { ENTER(0); current = device; fake_depth = device == 0; return 0; }
EXPORT int hipGetDevicePropertiesR0600(char *properties, int device) {
    ENTER(0);
    if (device != 40) return wrong("another device");
    strcpy(properties + 1160, "gfx942:sramecc+:xnack-");
    return 0;
}
EXPORT const char *hipGetErrorString(int status) { return status == 2 ? "out of memory" : status == 1 ? "invalid argument" : "it burns"; }
#else
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device) {
    ENTER(0);
    if (device != 40) return wrong("another device");
    if (attribute != 75 && attribute != 76) return wrong("another attribute");
    *value = attribute == 75 ? fake_major : fake_minor;
    return 0;
}
EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) { ENTER(0); *context = (void *)0x5000; return device == 40 ? 0 : wrong("another device"); }
EXPORT int cuCtxPushCurrent_v2(void *context) { ENTER(0); fake_depth++; return context == (void *)0x5000 ? 0 : wrong("another context"); }
EXPORT int cuCtxPopCurrent_v2(void **context) { ENTER(0); fake_depth--; *context = (void *)0x5000; return 0; }
EXPORT int cuFuncSetAttribute(void *function, int attribute, int value) {
    ENTER(1);
    if (attribute != 8) return wrong("another attribute of a function");
    fake_shared = value;
    return function ? 0 : wrong("no function");
}
EXPORT int cuGetErrorString(int status, const char **text) {
    *text = status == 2 ? "out of memory" : status == 1 ? "invalid argument" : "it burns";
    return 0;
}
#endif

/* --- code: a module is its image; a function is its name, kept for ever --- */

EXPORT int NAME(cuModuleLoadData, hipModuleLoadData)(void **module, const char *image) {
    ENTER(1);
    if (memcmp(image, "\177ELF", 4)) return 200; /* CUDA_ERROR_INVALID_IMAGE */
    *module = (void *)image;
    fake_modules++;
    return 0;
}
EXPORT int NAME(cuModuleUnload, hipModuleUnload)(void *module) { ENTER(1); fake_modules--; return module ? 0 : wrong("no module"); }
EXPORT int NAME(cuModuleGetFunction, hipModuleGetFunction)(void **function, void *module, const char *name) {
    ENTER(1);
    if (!module) return wrong("no module");
    *function = strdup(name);
    return 0;
}

/* --- memory --- */

EXPORT int NAME(cuMemAlloc_v2, hipMalloc)(void **address, size_t size) {
    ENTER(1);
    if (!size) return wrong("a block of no bytes");
    for (int i = 0; i < MOST; i++)
        if (!blocks[i]) {
            if (posix_memalign(&blocks[i], 256, size)) return 2;
            memset(blocks[i], 0xff, size);
            sizes[i] = size;
            *address = blocks[i];
            fake_blocks++;
            return 0;
        }
    return 2;
}
EXPORT int NAME(cuMemFree_v2, hipFree)(void *address) {
    ENTER(1);
    for (int i = 0; i < MOST; i++)
        if (blocks[i] == address) {
            free(address);
            blocks[i] = NULL;
            fake_blocks--;
            return 0;
        }
    return wrong("memory that was not lent");
}

static int stream_known(void *stream);

EXPORT int NAME(cuMemcpyHtoDAsync_v2, hipMemcpyHtoDAsync)(uintptr_t to, const void *from, size_t size, void *stream) {
    ENTER(1);
    if (!inside(to, size) || !stream_known(stream)) return wrong("a copy in to elsewhere");
    memcpy((void *)to, from, size);
    return 0;
}
EXPORT int NAME(cuMemcpyDtoHAsync_v2, hipMemcpyDtoHAsync)(void *to, uintptr_t from, size_t size, void *stream) {
    ENTER(1);
    if (!inside(from, size) || !stream_known(stream)) return wrong("a copy out from elsewhere");
    memcpy(to, (void *)from, size);
    return 0;
}
EXPORT int NAME(cuMemcpyDtoDAsync_v2, hipMemcpyDtoDAsync)(uintptr_t to, uintptr_t from, size_t size, void *stream) {
    ENTER(1);
    if (!inside(to, size) || !inside(from, size) || !stream_known(stream)) return wrong("a copy elsewhere");
    memcpy((void *)to, (void *)from, size);
    return 0;
}
EXPORT int NAME(cuMemsetD8Async, hipMemsetD8Async)(uintptr_t to, unsigned char value, size_t count, void *stream) {
    ENTER(1);
    if (!inside(to, count) || !stream_known(stream)) return wrong("memory cleared elsewhere");
    memset((void *)to, value, count);
    return 0;
}

/* --- streams --- */

static char streams[MOST];
static int stream_known(void *stream) { return !stream || ((uintptr_t)stream > 0x9000 && (uintptr_t)stream < 0x9000 + MOST && streams[(uintptr_t)stream - 0x9000]); }

EXPORT int NAME(cuStreamCreate, hipStreamCreateWithFlags)(void **stream, unsigned flags) {
    ENTER(1);
    if (flags != 1) return wrong("flags of a stream");
    for (int i = 1; i < MOST; i++)
        if (!streams[i]) {
            streams[i] = 1;
            fake_streams++;
            *stream = (void *)(uintptr_t)(0x9000 + i);
            return 0;
        }
    return 2;
}
EXPORT int NAME(cuStreamDestroy_v2, hipStreamDestroy)(void *stream) {
    ENTER(1);
    if (!stream || !stream_known(stream)) return wrong("no stream");
    streams[(uintptr_t)stream - 0x9000] = 0;
    fake_streams--;
    return 0;
}
EXPORT int NAME(cuStreamSynchronize, hipStreamSynchronize)(void *stream) { ENTER(1); return stream_known(stream) ? 0 : wrong("no stream"); }

/* --- events: the n-th that is recorded is so many milliseconds late --- */

EXPORT long fake_events;
static float clock_ms;
EXPORT int NAME(cuEventCreate, hipEventCreateWithFlags)(void **event, unsigned flags) {
    ENTER(1);
    if (flags) return wrong("flags of an event");
    *event = calloc(1, sizeof(float));
    fake_events++;
    return 0;
}
EXPORT int NAME(cuEventRecord, hipEventRecord)(float *event, void *stream) {
    ENTER(1);
    if (!event || !stream_known(stream)) return wrong("an event on no stream");
    *event = clock_ms += 2;
    return 0;
}
EXPORT int NAME(cuEventElapsedTime, hipEventElapsedTime)(float *ms, const float *start, const float *end) {
    ENTER(1);
    if (!*start || !*end) return wrong("an event that was not recorded");
    *ms = *end - *start;
    return 0;
}
EXPORT int NAME(cuEventDestroy_v2, hipEventDestroy)(void *event) { ENTER(1); free(event); fake_events--; return 0; }

/* --- launches --- */

static int run(const char *function, const unsigned *grid, const unsigned *block, unsigned shared, void **parameters, void **extra) {
    if (!function || extra) return wrong("a launch without a function, or with extra");
    if (!grid[0] || grid[1] != 1 || grid[2] != 1 || !block[0] || block[0] > 1024 || block[1] != 1 || block[2] != 1) return wrong("the size of a launch");
    if (fake_kernel) fake_kernel(function, grid[0], block[0], shared, parameters);
    return 0;
}

EXPORT int NAME(cuLaunchKernel, hipModuleLaunchKernel)(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                                                       unsigned shared, void *stream, void **parameters, void **extra) {
    ENTER(1);
    unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
    if (!stream_known(stream)) return wrong("a launch on no stream");
    return run(function, grid, block, shared, parameters, extra);
}

/* --- graphs: drivers copy the arguments of a node when it is added or changed. How many a kernel takes the driver knows from its code, and we from
   the test: up to 32 words are copied, and parameters that end sooner are told by a null --- */

#ifdef HIP
typedef struct { unsigned block[3]; void **extra; void *func; unsigned grid[3]; void **params; unsigned shared; } node_params;
#else
typedef struct { void *func; unsigned grid[3]; unsigned block[3]; unsigned shared; void **params; void **extra; void *kern; void *ctx; } node_params;
#endif

EXPORT int (*fake_count)(const char *name); /* how many arguments a kernel takes */

typedef struct { char *func; unsigned grid[3], block[3], shared; uint64_t words[64]; void *places[64]; int before; } node;
typedef struct { int count; node nodes[256]; } graph;

static int keep(node *n, const node_params *p) {
    if (p->extra || !p->func || !fake_count) return wrong("arguments of a node");
#ifndef HIP
    if (p->kern || p->ctx) return wrong("a node with a kernel or a context");
#endif
    n->func = p->func;
    memcpy(n->grid, p->grid, sizeof n->grid);
    memcpy(n->block, p->block, sizeof n->block);
    n->shared = p->shared;
    int count = fake_count(n->func);
    if (count < 0 || count > 64) return wrong("how many arguments a kernel takes");
    for (int i = 0; i < count; i++) {
        n->words[i] = *(uint64_t *)p->params[i];
        n->places[i] = &n->words[i];
    }
    return 0;
}

EXPORT int NAME(cuGraphCreate, hipGraphCreate)(void **out, unsigned flags) {
    ENTER(1);
    if (flags) return wrong("flags of a graph");
    *out = calloc(1, sizeof(graph));
    fake_graphs++;
    return 0;
}
EXPORT int NAME(cuGraphAddKernelNode_v2, hipGraphAddKernelNode)(void **out, void *g, void **before, size_t count, const node_params *p) {
    ENTER(1);
    graph *all = g;
    if (all->count == 256) return wrong("too many nodes");
    if (count != (all->count > 0) || (count && before[0] != (void *)(uintptr_t)all->count)) return wrong("a node that follows another than the last");
    if (keep(&all->nodes[all->count], p)) return 1;
    *out = (void *)(uintptr_t)++all->count;
    return 0;
}
EXPORT int NAME(cuGraphInstantiateWithFlags, hipGraphInstantiateWithFlags)(void **out, void *g, unsigned long long flags) {
    ENTER(1);
    if (flags) return wrong("flags of an instance");
    graph *copy = malloc(sizeof(graph));
    memcpy(copy, g, sizeof(graph));
    for (int i = 0; i < copy->count; i++)
        for (int k = 0; k < 64; k++) copy->nodes[i].places[k] = &copy->nodes[i].words[k];
    *out = copy;
    fake_execs++;
    return 0;
}
EXPORT int NAME(cuGraphExecKernelNodeSetParams_v2, hipGraphExecKernelNodeSetParams)(void *g, void *which, const node_params *p) {
    ENTER(1);
    graph *all = g;
    uintptr_t n = (uintptr_t)which;
    if (n < 1 || n > (uintptr_t)all->count || all->nodes[n - 1].func != p->func) return wrong("a node that there is not");
    fake_updates++;
    return keep(&all->nodes[n - 1], p);
}
EXPORT int NAME(cuGraphLaunch, hipGraphLaunch)(void *g, void *stream) {
    ENTER(1);
    graph *all = g;
    if (!stream_known(stream)) return wrong("a graph on no stream");
    fake_graph_launches++;
    for (int i = 0; i < all->count; i++) {
        node *n = &all->nodes[i];
        int status = run(n->func, n->grid, n->block, n->shared, n->places, NULL);
        if (status) return status;
    }
    return 0;
}
EXPORT int NAME(cuGraphDestroy, hipGraphDestroy)(void *g) { ENTER(1); free(g); fake_graphs--; return 0; }
EXPORT int NAME(cuGraphExecDestroy, hipGraphExecDestroy)(void *g) { ENTER(1); free(g); fake_execs--; return 0; }
