// CUDA's runtime, driver, cuBLASLt and cuBLAS for a device that is the host: memory is the host's, and work is done at
// once, in the order in which it is given; or late (sub_late): when somebody waits for it, streams in an order drawn at
// random as far as events allow.  The rules of stream capture are enforced as CUDA's documentation has them.
//
// What real CuPy calls of the runtime is redirected to here: cudaXyz to sub_cudaXyz (see substitute.py).
//
// There may be several devices (sub_devices), each with streams of its own, for several ranks of a training: work of one
// that waits for another's (nccl.cpp) is put off, and a thread that has nothing else to do lets other threads go on.

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace {

enum Error {
    DONE = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_HANDLE = 400, NOT_READY = 600,
    NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_IMPLICIT = 906,
};

using Work = std::function<void()>;
using Ready = std::function<bool()>;
struct Stage { Ready ready; Work work; };  // what is done once it is ready; at once, where nobody says when
struct Node { std::string kind, name; std::vector<Stage> stages; };
using Graph = std::vector<Node>;
struct Mark { struct Stream* stream = nullptr; long number = 0; };  // how much of a stream's work
struct Item { std::vector<Mark> after; Stage stage; };
struct Stream {
    bool nonblocking = false, capturing = false, invalid = false, relaxed = false;
    struct Device* device;
    Graph nodes = {};
    std::deque<Item> queue = {};
    long given = 0, done = 0;
};
struct Device { Stream legacy{.device = this}; std::set<Stream*> streams; };
struct Event { Mark at; bool captured = false; };

struct Mutex {  // one that a thread can let go of however often it has it
    void lock() { mutex.lock(), ++depth; }
    void unlock() { --depth, mutex.unlock(); }
    void pause() {
        int had = depth;
        for (int i = 0; i < had; ++i) unlock();
        usleep(100);
        for (int i = 0; i < had; ++i) lock();
    }
    std::recursive_mutex mutex;
    int depth = 0;
} mutex;
using Lock = std::lock_guard<Mutex>;
std::map<std::string, long> counts;

enum { MOST_DEVICES = 16 };
Device devices[MOST_DEVICES];
int device_count = std::getenv("BPNET_SUBSTITUTE_DEVICES") ? std::atoi(std::getenv("BPNET_SUBSTITUTE_DEVICES")) : 1;
thread_local int current = 0;

bool late = false;
std::mt19937 dice;
std::map<const char*, size_t> pinned;

Stream* stream_of(void* s) { return (uintptr_t)s < 3 ? &devices[current].legacy : (Stream*)s; }

void invalidate() {
    for (Stream* s : devices[current].streams) s->invalid |= s->capturing;
}

bool any_capture(bool relaxed) {
    const std::set<Stream*>& streams = devices[current].streams;
    return std::any_of(streams.begin(), streams.end(), [=](Stream* s) { return s->capturing && (relaxed || !s->relaxed); });
}

// The legacy stream waits for all that block on it, which a captured one can't be waited for.
int implicit(Stream* s) {
    if (s != &s->device->legacy) return DONE;
    bool found = false;
    for (Stream* other : s->device->streams) {
        if (other->capturing && !other->nonblocking) found = other->invalid = true;
    }
    return found ? CAPTURE_IMPLICIT : DONE;
}

bool reached(Mark mark) { return !mark.stream || mark.stream->done >= mark.number; }

// Have streams run until that much is done, one that can at a time.
void run_until(Mark mark) {
    while (!reached(mark)) {
        std::vector<Stream*> ready;
        bool waits = false;
        auto look = [&](Stream* s) {
            if (s->queue.empty()) return;
            const Item& next = s->queue.front();
            if (!std::all_of(next.after.begin(), next.after.end(), reached)) return;
            if (next.stage.ready && !next.stage.ready()) waits = true;
            else ready.push_back(s);
        };
        for (int i = 0; i < device_count; ++i) {
            look(&devices[i].legacy);
            for (Stream* s : devices[i].streams) look(s);
        }
        if (ready.empty() && waits) {
            mutex.pause();
            continue;
        }
        Stream* s = ready.at(dice() % ready.size());
        Work work = std::move(s->queue.front().stage.work);
        s->queue.pop_front();
        work();
        ++s->done;
    }
}

// What is done once all is that was given to the stream before, and to those for which it waits by itself.
Mark enqueue(Stream* s, std::vector<Stage> stages, Mark event = {}) {
    std::vector<Mark> after = {event};
    Stream* legacy = &s->device->legacy;
    if (s == legacy) {
        for (Stream* other : s->device->streams) if (!other->nonblocking) after.push_back({other, other->given});
    } else if (!s->nonblocking) {
        after.push_back({legacy, legacy->given});
    }
    for (Stage& stage : stages) s->queue.push_back({after, std::move(stage)}), ++s->given;
    Mark mark = {s, s->given};
    if (!late) run_until(mark);
    return mark;
}
Mark enqueue(Stream* s, Mark event = {}) { return enqueue(s, {{nullptr, [] {}}}, event); }

// All that the current device has been given.
void finish() {
    Lock lock(mutex);
    Device& device = devices[current];
    std::vector<Mark> given = {{&device.legacy, device.legacy.given}};
    for (Stream* s : device.streams) given.push_back({s, s->given});
    for (Mark mark : given) run_until(mark);
}

int submit(void* stream, const char* kind, const std::string& name, std::vector<Stage> stages) {
    Lock lock(mutex);
    Stream* s = stream_of(stream);
    if (int error = implicit(s)) return error;
    if (s->capturing) {
        if (s->invalid) return CAPTURE_INVALIDATED;
        s->nodes.push_back({kind, name, std::move(stages)});
        return DONE;
    }
    ++counts[kind];
    return enqueue(s, std::move(stages)), DONE;
}
int submit(void* stream, const char* kind, const std::string& name, Work work) {
    return submit(stream, kind, name, std::vector<Stage>{{nullptr, std::move(work)}});
}

// What may not be done while any stream is captured; or but in relaxed mode, which is CuPy's.
int unsafe(const char* what, bool ever = false) {
    Lock lock(mutex);
    ++counts[what];
    if (!any_capture(ever)) return DONE;
    invalidate();
    return CAPTURE_UNSUPPORTED;
}

void count(const char* what) {
    Lock lock(mutex);
    ++counts[what];
}

}  // namespace

extern "C" {

const char* sub_counts() {
    static std::string text;
    Lock lock(mutex);
    text.clear();
    for (auto& [name, n] : counts) text += name + " " + std::to_string(n) + "\n";
    return text.c_str();
}

// Of a library that works on streams as this one does.
int sub_submit(void* stream, const char* kind, std::vector<Stage> stages) { return submit(stream, kind, "", std::move(stages)); }
void sub_finish() { finish(); }
int sub_device() { return current; }

void sub_devices(int n) { device_count = n; }

void sub_late(int on, unsigned seed) {
    for (int i = 0; i < device_count; ++i) current = i, finish();
    current = 0;
    late = on, dice.seed(seed);
}

// ---- the runtime: devices and memory

int sub_cudaGetDevice(int* device) { return *device = current, DONE; }
int sub_cudaSetDevice(int device) {
    if (device < 0 || device >= device_count) return INVALID_DEVICE;
    return current = device, DONE;
}
int sub_cudaGetDeviceCount(int* n) { return *n = device_count, DONE; }
int sub_cudaDeviceGetPCIBusId(char* text, int size, int device) {
    return std::snprintf(text, size, "0000:%02x:00.0", device + 1), DONE;
}
int sub_cudaDriverGetVersion(int* version) { return *version = 13000, DONE; }
int sub_cudaRuntimeGetVersion(int* version) { return *version = 13000, DONE; }
int sub_cudaGetLastError() { return DONE; }
int sub_cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, DONE; }

int sub_cudaDeviceGetAttribute(int* value, int attribute, int) {
    static const std::map<int, int> known = {
        {1, 1024}, {8, 49152}, {10, 32}, {16, 132}, {39, 2048}, {75, 9}, {76, 0},
    };  // threads a block, shared memory, lanes of a warp, multiprocessors, threads of each, compute capability 9.0
    auto found = known.find(attribute);
    return *value = found == known.end() ? 1 : found->second, DONE;
}

int sub_cudaGetDeviceProperties(char* properties, int) { return std::strcpy(properties, "the host"), DONE; }

int sub_cudaMemGetInfo(size_t* free_bytes, size_t* total) {
    count("memory info");
    return *free_bytes = 70ul << 30, *total = 80ul << 30, DONE;
}

int sub_cudaMalloc(void** p, size_t size) {
    if (int error = unsafe("malloc")) return error;
    *p = std::aligned_alloc(512, (size + 511) / 512 * 512);
    if (!*p) return OUT_OF_MEMORY;
    std::memset(*p, 0xa5, size);  // as memory that was used before
    return DONE;
}

int sub_cudaFree(void* p) {
    if (int error = unsafe("free")) return error;
    return finish(), std::free(p), DONE;
}

int sub_cudaHostAlloc(void** p, size_t size, unsigned) {
    if (int error = unsafe("host allocation")) return error;
    *p = std::aligned_alloc(4096, (size + 4095) / 4096 * 4096);
    Lock lock(mutex);
    return pinned[(char*)*p] = size, *p ? DONE : OUT_OF_MEMORY;
}

int sub_cudaFreeHost(void* p) {
    finish();
    Lock lock(mutex);
    return pinned.erase((char*)p), std::free(p), DONE;
}

static bool is_pinned(const void* p) {
    auto next = pinned.upper_bound((const char*)p);
    return next != pinned.begin() && (--next)->first + next->second > p;
}

struct Attributes { int type, device; void *device_pointer, *host_pointer; };
int sub_cudaPointerGetAttributes(Attributes* a, const void*) { return *a = {}, DONE; }

int sub_cudaMemcpy(void* to, const void* from, size_t size, int) {
    if (int error = implicit(stream_of(nullptr))) return error;
    if (int error = unsafe("synchronous copy")) return error;
    return finish(), std::memmove(to, from, size), DONE;
}

// Of memory that is not pinned, a copy to the device keeps what is there now, and one to the host is waited for.

int sub_cudaMemcpyAsync(void* to, const void* from, size_t size, int kind, void* stream) {
    static const char* names[] = {"host copy", "copy to device", "copy to host", "device copy", "device copy"};
    Lock lock(mutex);
    Stream* s = stream_of(stream);
    if (kind == 1 && !is_pinned(from)) {
        std::string now((const char*)from, size);
        return submit(stream, names[kind], "", [=] { std::memmove(to, now.data(), size); });
    }
    int error = submit(stream, names[kind], "", [=] { std::memmove(to, from, size); });
    if (!error && kind == 2 && !is_pinned(to)) run_until({s, s->given});
    return error;
}

int sub_cudaMemset(void* p, int value, size_t size) { return finish(), std::memset(p, value, size), DONE; }
int sub_cudaMemsetAsync(void* p, int value, size_t size, void* stream) {
    return submit(stream, "memset", "", [=] { std::memset(p, value, size); });
}

// ---- streams and events

int sub_cudaStreamCreateWithPriority(void** stream, unsigned flags, int) {
    Lock lock(mutex);
    Stream* s = new Stream{.device = &devices[current]};
    s->nonblocking = flags & 1;
    s->device->streams.insert(s);
    return *stream = s, DONE;
}
int sub_cudaStreamCreateWithFlags(void** stream, unsigned flags) { return sub_cudaStreamCreateWithPriority(stream, flags, 0); }
int sub_cudaStreamCreate(void** stream) { return sub_cudaStreamCreateWithPriority(stream, 0, 0); }

int sub_cudaStreamDestroy(Stream* s) {
    Lock lock(mutex);
    run_until({s, s->given});
    return s->device->streams.erase(s), DONE;  // events may still know it
}

static int wait(const char* what, Stream* s) {
    Lock lock(mutex);
    ++counts[what];
    if (int error = implicit(s)) return error;
    if (s->capturing) return s->invalid = true, CAPTURE_UNSUPPORTED;
    return run_until(enqueue(s)), DONE;
}

int sub_cudaStreamSynchronize(void* stream) { return wait("synchronise", stream_of(stream)); }
int sub_cudaDeviceSynchronize() {
    int error = unsafe("device synchronise", true);
    return error ? error : (finish(), DONE);
}
int sub_cudaStreamQuery(void* stream) { return stream_of(stream)->queue.empty() ? DONE : NOT_READY; }
int sub_cudaStreamGetFlags(void* s, unsigned* flags) { return *flags = stream_of(s)->nonblocking, DONE; }
int sub_cudaStreamGetPriority(void*, int* priority) { return *priority = 0, DONE; }
int sub_cudaStreamWaitEvent(void* stream, Event* event, unsigned) {
    Lock lock(mutex);
    ++counts["wait for event"];
    if (!stream_of(stream)->capturing) enqueue(stream_of(stream), event->at);
    return DONE;
}

int sub_cudaStreamBeginCapture(void* stream, int mode) {
    Lock lock(mutex);
    Stream* s = stream_of(stream);
    if (s == &s->device->legacy || s->capturing) return CAPTURE_UNSUPPORTED;
    s->capturing = true, s->invalid = false, s->relaxed = mode == 2, s->nodes.clear();
    return DONE;
}

int sub_cudaStreamEndCapture(void* stream, Graph** graph) {
    Lock lock(mutex);
    Stream* s = stream_of(stream);
    *graph = nullptr;
    if (!s->capturing) return CAPTURE_INVALIDATED;
    s->capturing = false;
    if (s->invalid) return CAPTURE_INVALIDATED;
    counts["nodes"] += s->nodes.size();
    for (const Node& node : s->nodes) ++counts["node: " + node.kind];
    return *graph = new Graph(std::move(s->nodes)), DONE;
}

int sub_cudaStreamIsCapturing(void* stream, int* status) {
    Lock lock(mutex);
    Stream* s = stream_of(stream);
    if (int error = implicit(s)) return error;
    return *status = s->capturing + (s->capturing && s->invalid), DONE;
}

int sub_cudaEventCreateWithFlags(Event** event, unsigned) { return *event = new Event, DONE; }
int sub_cudaEventCreate(Event** event) { return *event = new Event, DONE; }
int sub_cudaEventDestroy(Event* event) { return delete event, DONE; }
int sub_cudaEventRecord(Event* event, void* stream) {
    Lock lock(mutex);
    Stream* s = stream_of(stream);
    if (int error = implicit(s)) return error;
    event->captured = s->capturing;
    if (!s->capturing) event->at = enqueue(s);
    return DONE;
}
int sub_cudaEventSynchronize(Event* event) {
    Lock lock(mutex);
    ++counts["synchronise event"];
    if (event->captured) return INVALID_HANDLE;
    return run_until(event->at), DONE;
}
int sub_cudaEventQuery(Event* event) {
    if (!event->captured) return reached(event->at) ? DONE : NOT_READY;
    return invalidate(), CAPTURE_UNSUPPORTED;
}
int sub_cudaEventElapsedTime(float* ms, void*, void*) { return *ms = 1.0f, DONE; }

// ---- graphs

int sub_cudaGraphInstantiate(Graph** executable, Graph* graph, unsigned long long) {
    return count("instantiate"), *executable = new Graph(*graph), DONE;
}
int sub_cudaGraphLaunch(Graph* graph, void* stream) {
    std::vector<Stage> stages;
    for (const Node& node : *graph) stages.insert(stages.end(), node.stages.begin(), node.stages.end());
    return submit(stream, "graph launch", "", std::move(stages));
}
int sub_cudaGraphUpload(Graph*, void*) { return DONE; }
int sub_cudaGraphDestroy(Graph* graph) { return delete graph, DONE; }
int sub_cudaGraphExecDestroy(Graph* graph) { return delete graph, DONE; }

// ---- the driver: modules are shared objects of kernels for the host, whose path is their image

int cuInit(unsigned) { return DONE; }
int cuDriverGetVersion(int* version) { return *version = 13000, DONE; }
int cuGetErrorName(int, const char** name) { return *name = "CUDA_ERROR", DONE; }
int cuGetErrorString(int, const char** text) { return *text = "an error of the substitute", DONE; }
int cuGetExportTable(const void** table, const void*) { return *table = nullptr, 500; }
int cuCtxGetCurrent(void** context) { return *context = &devices[current], DONE; }
int cuCtxSetCurrent(void*) { return DONE; }
int cuCtxGetDevice(int* device) { return *device = current, DONE; }
int cuCtxSynchronize() { return sub_cudaDeviceSynchronize(); }

struct Three { unsigned x, y; };
struct Function {
    std::string name;
    bool (*launch)(Three, Three, void**);
    void** (*keep)(void**);
};

int cuModuleLoadData(void** module, const void* image) {
    if (int error = unsafe("module")) return error;
    *module = dlopen((const char*)image, RTLD_NOW | RTLD_LOCAL);
    if (!*module) std::fprintf(stderr, "%s\n", dlerror());
    return *module ? DONE : 200;
}
int cuModuleUnload(void*) { return DONE; }
int cuModuleGetFunction(Function** function, void* module, const char* name) {
    void* launch = dlsym(module, (std::string("launch_") + name).c_str());
    void* keep = dlsym(module, (std::string("keep_") + name).c_str());
    if (!launch || !keep) return 500;
    *function = new Function{name, (bool (*)(Three, Three, void**))launch, (void** (*)(void**))keep};
    return DONE;
}
int cuFuncGetAttribute(int* value, int, void*) { return *value = 1024, DONE; }
int cuFuncSetAttribute(void*, int, int) { return DONE; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, void*, int threads, size_t) { return *n = 2048 / threads, DONE; }
int cuOccupancyMaxPotentialBlockSize(int* grid, int* block, void*, void*, size_t, int) {
    return *grid = 264, *block = 1024, DONE;
}

int cuLaunchKernel(
    Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned, void* stream,
    void** parameters, void**
) {
    if (!gx || !gy || gz != 1 || !bx || !by || bz != 1 || bx * by > 1024 || gy > 65535) return INVALID_VALUE;
    void** kept = f->keep(parameters);
    auto work = [=] {
        if (!f->launch({gx, gy}, {bx, by}, kept)) {
            std::fprintf(stderr, "threads of a block of %s wait at different places\n", f->name.c_str());
            std::abort();
        }
    };
    return submit(stream, "kernel", f->name, work);
}

}  // extern "C"

// ---- cuBLASLt

namespace {
enum { TRANSA = 3, TRANSB = 4, EPILOGUE = 7, BIAS_POINTER = 8, BATCH_COUNT = 5, STRIDED_BATCH_OFFSET = 6 };
enum { R_32F = 0, R_64F = 1, R_16BF = 14, FAST_TF32 = 77, RELU = 2, BIAS = 4 };
struct Description { int compute, scale; int64_t values[64] = {}; };
struct Layout { int kind; uint64_t rows, columns; int64_t leading; int64_t batch = 1, apart = 0; };
struct Heuristic { uint64_t algorithm[8]; size_t workspace; int state; float waves; int reserved[4]; };

double read(const void* p, int kind, int64_t i) {
    if (kind == R_64F) return ((const double*)p)[i];
    if (kind == R_32F) return ((const float*)p)[i];
    uint32_t bits = (uint32_t)((const uint16_t*)p)[i] << 16;
    float value;
    return std::memcpy(&value, &bits, 4), value;
}

float rounded(float value, uint32_t dropped) {  // to the nearest with so many bits less, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (std::isfinite(value)) bits += ((1u << (dropped - 1)) - 1) + ((bits >> dropped) & 1);
    bits &= ~((1u << dropped) - 1);
    return std::memcpy(&value, &bits, 4), value;
}

void write(void* p, int kind, int64_t i, double value) {
    if (kind == R_64F) ((double*)p)[i] = value;
    else if (kind == R_32F) ((float*)p)[i] = (float)value;
    else {
        float bfloat = rounded((float)value, 16);
        uint32_t bits;
        std::memcpy(&bits, &bfloat, 4);
        ((uint16_t*)p)[i] = bits >> 16;
    }
}

// A matrix of columns as rows of numbers, rounded as TensorFloat-32 is if wished.
std::vector<double> unpacked(const void* p, int kind, int64_t leading, bool transposed, int64_t rows, int64_t columns, bool tf32) {
    std::vector<double> values(rows * columns);
    for (int64_t i = 0; i < rows; ++i) for (int64_t j = 0; j < columns; ++j) {
        double value = read(p, kind, transposed ? i * leading + j : j * leading + i);
        values[i * columns + j] = tf32 ? rounded((float)value, 13) : value;
    }
    return values;
}

void product(
    bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const void* a, int kind_a, int64_t lda, const void* b,
    int kind_b, int64_t ldb, double beta, void* c, int kind_c, int64_t ldc, bool tf32, int epilogue, const void* bias
) {
    std::vector<double> x = unpacked(a, kind_a, lda, !ta, k, m, tf32), y = unpacked(b, kind_b, ldb, tb, k, n, tf32), sums(m);
    for (int64_t j = 0; j < n; ++j) {
        std::fill(sums.begin(), sums.end(), 0.0);
        for (int64_t l = 0; l < k; ++l) for (int64_t i = 0; i < m; ++i) sums[i] += x[l * m + i] * y[l * n + j];
        for (int64_t i = 0; i < m; ++i) {
            double sum = alpha * sums[i] + (beta != 0.0 ? beta * read(c, kind_c, j * ldc + i) : 0.0);
            if (epilogue & BIAS) sum += read(bias, kind_c, i);
            if (epilogue & RELU) sum = std::fmax(sum, 0.0);
            write(c, kind_c, j * ldc + i, sum);
        }
    }
}
}  // namespace

extern "C" {

size_t cublasLtGetVersion() { return 130000; }
int cublasLtCreate(void** handle) { return *handle = &devices[0], DONE; }
int cublasLtDestroy(void*) { return DONE; }
int cublasLtMatmulDescCreate(Description** d, int compute, int scale) { return *d = new Description{compute, scale}, DONE; }
int cublasLtMatmulDescDestroy(Description* d) { return delete d, DONE; }
int cublasLtMatmulDescSetAttribute(Description* d, int name, const void* value, size_t size) {
    return std::memcpy(&d->values[name], value, size), DONE;
}
int cublasLtMatrixLayoutCreate(Layout** layout, int kind, uint64_t rows, uint64_t columns, int64_t leading) {
    if (leading < (int64_t)rows) return 7;
    return *layout = new Layout{kind, rows, columns, leading}, DONE;
}
int cublasLtMatrixLayoutDestroy(Layout* layout) { return delete layout, DONE; }
int cublasLtMatrixLayoutSetAttribute(Layout* layout, int name, const void* value, size_t) {
    if (name == BATCH_COUNT) layout->batch = *(const int32_t*)value;
    if (name == STRIDED_BATCH_OFFSET) layout->apart = *(const int64_t*)value;
    return DONE;
}
int cublasLtMatmulPreferenceCreate(int64_t** preference) { return *preference = new int64_t[64](), DONE; }
int cublasLtMatmulPreferenceDestroy(int64_t* preference) { return delete[] preference, DONE; }
int cublasLtMatmulPreferenceSetAttribute(int64_t* preference, int name, const void* value, size_t size) {
    return std::memcpy(&preference[name], value, size), DONE;
}
int cublasLtMatmulAlgoGetHeuristic(
    void*, Description*, Layout*, Layout*, Layout*, Layout*, void*, int, Heuristic* result, int* found
) {
    if (int error = unsafe("heuristic", true)) return error;
    *result = {};
    result->workspace = 4096;
    return *found = 1, DONE;
}
int cublasLtMatmul(
    void*, Description* d, const void* alpha, const void* a, Layout* of_a, const void* b, Layout* of_b, const void* beta,
    const void*, Layout*, void* out, Layout* of_out, const void*, void*, size_t, void* stream
) {
    Description description = *d;
    Layout x = *of_a, y = *of_b, z = *of_out;
    bool ta = d->values[TRANSA] != 0, tb = d->values[TRANSB] != 0;
    double factor = read(alpha, d->scale, 0), added = read(beta, d->scale, 0);
    const void* bias = (const void*)d->values[BIAS_POINTER];
    int epilogue = (int)d->values[EPILOGUE] & ~1;
    auto bytes = [](const Layout& l, int64_t i) { return i * l.apart * (l.kind == R_64F ? 8 : l.kind == R_32F ? 4 : 2); };
    return submit(stream, "product", "", [=] {
        for (int64_t i = 0; i < z.batch; ++i) {
            product(
                ta, tb, z.rows, z.columns, ta ? x.rows : x.columns, factor, (const char*)a + bytes(x, i), x.kind, x.leading,
                (const char*)b + bytes(y, i), y.kind, y.leading, added, (char*)out + bytes(z, i), z.kind, z.leading,
                description.compute == FAST_TF32, epilogue, bias
            );
        }
    });
}

// ---- cuBLAS, whose handle remembers a stream

int cublasCreate_v2(void*** handle) { return *handle = new void*[1](), DONE; }
int cublasDestroy_v2(void** handle) { return delete[] handle, DONE; }
int cublasSetStream_v2(void** handle, void* stream) { return *handle = stream, DONE; }
int cublasGetStream_v2(void** handle, void** stream) { return *stream = *handle, DONE; }
int cublasSetPointerMode_v2(void**, int) { return DONE; }
int cublasGetPointerMode_v2(void**, int* mode) { return *mode = 0, DONE; }
int cublasSetMathMode(void**, int) { return DONE; }
int cublasGetMathMode(void**, int* mode) { return *mode = 0, DONE; }

static int gemm(
    void** handle, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int kind_a, int lda,
    int64_t apart_a, const void* b, int kind_b, int ldb, int64_t apart_b, const void* beta, void* c, int kind_c, int ldc,
    int64_t apart_c, int stack, int kind
) {
    double factor = read(alpha, kind, 0), added = read(beta, kind, 0);
    auto bytes = [](int kind, int64_t n) { return n * (kind == R_64F ? 8 : kind == R_32F ? 4 : 2); };
    return submit(*handle, "product of cuBLAS", "", [=] {
        for (int i = 0; i < stack; ++i) {
            product(
                ta, tb, m, n, k, factor, (const char*)a + bytes(kind_a, i * apart_a), kind_a, lda,
                (const char*)b + bytes(kind_b, i * apart_b), kind_b, ldb, added, (char*)c + bytes(kind_c, i * apart_c),
                kind_c, ldc, false, 0, nullptr
            );
        }
    });
}

#define GEMM(letter, real, kind) \
    int cublas##letter##gemm_v2( \
        void** h, int ta, int tb, int m, int n, int k, const real* alpha, const void* a, int lda, const void* b, int ldb, \
        const real* beta, void* c, int ldc \
    ) { return gemm(h, ta, tb, m, n, k, alpha, a, kind, lda, 0, b, kind, ldb, 0, beta, c, kind, ldc, 0, 1, kind); } \
    int cublas##letter##gemmStridedBatched( \
        void** h, int ta, int tb, int m, int n, int k, const real* alpha, const void* a, int lda, long long apart_a, \
        const void* b, int ldb, long long apart_b, const real* beta, void* c, int ldc, long long apart_c, int stack \
    ) { \
        return gemm(h, ta, tb, m, n, k, alpha, a, kind, lda, apart_a, b, kind, ldb, apart_b, beta, c, kind, ldc, apart_c, \
            stack, kind); \
    }
GEMM(S, float, R_32F)
GEMM(D, double, R_64F)

int cublasGemmEx(
    void** h, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int kind_a, int lda, const void* b,
    int kind_b, int ldb, const void* beta, void* c, int kind_c, int ldc, int, int
) {
    return gemm(h, ta, tb, m, n, k, alpha, a, kind_a, lda, 0, b, kind_b, ldb, 0, beta, c, kind_c, ldc, 0, 1,
        kind_c == R_64F ? R_64F : R_32F);
}
int cublasGemmStridedBatchedEx(
    void** h, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int kind_a, int lda, long long apart_a,
    const void* b, int kind_b, int ldb, long long apart_b, const void* beta, void* c, int kind_c, int ldc,
    long long apart_c, int stack, int, int
) {
    return gemm(h, ta, tb, m, n, k, alpha, a, kind_a, lda, apart_a, b, kind_b, ldb, apart_b, beta, c, kind_c, ldc, apart_c,
        stack, kind_c == R_64F ? R_64F : R_32F);
}

}  // extern "C"

// ---- CUB, as CuPy's own reductions call it

extern "C" {

size_t sub_cub_device_reduce_get_workspace_size() { return 4096; }
size_t sub_cub_device_segmented_reduce_get_workspace_size() { return 4096; }
void sub_cub_device_segmented_reduce(
    void*, size_t&, const void* x, void* y, int segments, int size, void* stream, int op, int type
) {
    int kind = type == 9 ? R_32F : R_64F;
    if (op > 2 || type < 9 || type > 10) std::fprintf(stderr, "no such reduction\n"), std::abort();
    submit(stream, "reduction of CUB", "", [=] {
        for (int64_t i = 0; i < segments; ++i) {
            double all = op == 0 ? 0.0 : read(x, kind, i * size);
            for (int64_t k = i * size; k < (i + 1) * size; ++k) {
                double value = read(x, kind, k);
                all = op == 0 ? all + value : op == 1 ? std::min(all, value) : std::max(all, value);
            }
            write(y, kind, i, all);
        }
    });
}
void sub_cub_device_reduce(void* scratch, size_t& size, const void* x, void* y, int count, void* stream, int op, int type) {
    sub_cub_device_segmented_reduce(scratch, size, x, y, 1, count, stream, op, type);
}

}  // extern "C"
