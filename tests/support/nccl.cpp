// NCCL for devices that are the host (device.cpp): ranks are threads or processes of one machine, each with a device of
// its own, and meet in a file that all of them map.  A sum waits on its stream until all ranks have come to it, as NCCL's
// kernel does, and for ever where one of them does not; ncclCommAbort ends the wait.  What NCCL forbids is an error here,
// or where it would hang or compute nonsense, the end of the process.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

struct Stage { std::function<bool()> ready; std::function<void()> work; };
extern "C" int sub_submit(void* stream, const char* kind, std::vector<Stage> stages);
extern "C" void sub_finish();
extern "C" int sub_device();

namespace {

enum Result { SUCCESS = 0, SYSTEM = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE = 6, IN_PROGRESS = 7 };
enum Type { FLOAT32 = 7, FLOAT64 = 8, BFLOAT16 = 9 };
enum { MOST_RANKS = 8, MOST_BYTES = 1 << 25 };

struct Sum { size_t count; int type; };
struct Meeting {  // where ranks meet, at first full of zeros
    std::atomic<int> joined;
    std::atomic<int> devices[MOST_RANKS];  // each plus 1
    std::atomic<long> given[MOST_RANKS], taken[MOST_RANKS];  // to how many sums a rank has given its part, and taken them
    Sum sums[MOST_RANKS][2];
    char parts[MOST_RANKS][2][MOST_BYTES];  // by turns
};
struct State {
    Meeting* meeting;
    int rank, ranks, device;
    long given = 0, taken = 0;
    std::atomic<bool> aborted{false};
    ~State() { munmap(meeting, sizeof(Meeting)); }
};
struct Comm { std::shared_ptr<State> state; };

std::atomic<int> failing{SUCCESS};  // what ncclCommGetAsyncError finds
thread_local int groups = 0;
thread_local std::vector<std::function<int()>> grouped;

[[noreturn]] void wrong(const char* what) { std::fprintf(stderr, "NCCL: %s\n", what), std::abort(); }

size_t bytes_of(int type) { return type == FLOAT64 ? 8 : type == FLOAT32 ? 4 : 2; }

double read(const char* from, int type, size_t i) {
    if (type == FLOAT64) return ((const double*)from)[i];
    if (type == FLOAT32) return ((const float*)from)[i];
    uint32_t bits = (uint32_t)((const uint16_t*)from)[i] << 16;
    float value;
    return std::memcpy(&value, &bits, 4), value;
}

void write(char* to, int type, size_t i, double value) {
    if (type == FLOAT64) ((double*)to)[i] = value;
    else if (type == FLOAT32) ((float*)to)[i] = (float)value;
    else {
        float narrow = (float)value;
        uint32_t bits;
        std::memcpy(&bits, &narrow, 4);
        if (std::isfinite(narrow)) bits += 0x7fff + (bits >> 16 & 1);
        ((uint16_t*)to)[i] = bits >> 16;
    }
}

// Every rank adds the parts in the order of the ranks, each sum of two in the type of the parts.
void add_up(const State& s, size_t count, int type, char* to) {
    const int turn = s.taken % 2;
    const Sum own = s.meeting->sums[s.rank][turn];
    for (int rank = 0; rank < s.ranks; ++rank) {
        const Sum other = s.meeting->sums[rank][turn];
        if (own.count != other.count || own.type != other.type) wrong("ranks add up vectors of other sizes or types");
    }
    for (size_t i = 0; i < count; ++i) {
        for (int rank = 0; rank < s.ranks; ++rank) {
            const double part = read(s.meeting->parts[rank][turn], type, i);
            write(to, type, i, rank ? read(to, type, i) + part : part);
        }
    }
}

int all_reduce(const void* from, void* to, size_t count, int type, std::shared_ptr<State> s, void* stream) {
    const size_t size = count * bytes_of(type);
    Stage give = {
        [s] {
            for (int rank = 0; rank < s->ranks; ++rank) if (s->meeting->taken[rank] < s->given - 1) return s->aborted.load();
            return true;
        },
        [=] {
            if (s->aborted) return;
            const int turn = s->given % 2;
            s->meeting->sums[s->rank][turn] = {count, type};
            std::memcpy(s->meeting->parts[s->rank][turn], from, size);
            s->meeting->given[s->rank] = ++s->given;
        },
    };
    Stage take = {
        [s] {
            for (int rank = 0; rank < s->ranks; ++rank) if (s->meeting->given[rank] <= s->taken) return s->aborted.load();
            return true;
        },
        [=] {
            if (s->aborted) return;
            add_up(*s, count, type, (char*)to);
            s->meeting->taken[s->rank] = ++s->taken;
        },
    };
    return sub_submit(stream, "all-reduce", {give, take}) ? 1 : SUCCESS;
}

int later(std::function<int()> call) {
    if (!groups) return call();
    return grouped.push_back(std::move(call)), SUCCESS;
}

}  // namespace

extern "C" {

struct Id { char bytes[128]; };

void sub_nccl_failing(int result) { failing = result; }

int ncclGetVersion(int* version) { return *version = 22703, SUCCESS; }
const char* ncclGetErrorString(int result) {
    return result == REMOTE ? "remote process exited or there was a network error" : result ? "an error of the substitute" : "no error";
}
const char* ncclGetLastError(void*) { return ""; }

int ncclGetUniqueId(Id* id) {
    const char* folder = std::getenv("BPNET_SUBSTITUTE");
    *id = {};
    std::snprintf(id->bytes, sizeof id->bytes, "%s/nccl-XXXXXX", folder ? folder : "/tmp");
    const int file = mkstemp(id->bytes);
    if (file < 0) return SYSTEM;
    const int error = ftruncate(file, sizeof(Meeting));
    return close(file), error ? SYSTEM : SUCCESS;
}

int ncclCommInitRankConfig(Comm** comm, int ranks, Id id, int rank, void*) {
    *comm = nullptr;
    if (ranks < 1 || ranks > MOST_RANKS || rank < 0 || rank >= ranks) return INVALID_ARGUMENT;
    const int file = open(id.bytes, O_RDWR);
    if (file < 0) return INVALID_ARGUMENT;
    void* at = mmap(nullptr, sizeof(Meeting), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (at == MAP_FAILED) return SYSTEM;
    auto s = std::make_shared<State>();
    s->meeting = (Meeting*)at, s->rank = rank, s->ranks = ranks, s->device = sub_device();
    s->meeting->devices[rank] = s->device + 1;
    ++s->meeting->joined;
    while (s->meeting->joined < ranks) usleep(200);
    unlink(id.bytes);
    for (int other = 0; other < ranks; ++other) {
        if (other != rank && s->meeting->devices[other] == s->device + 1) return INVALID_USAGE;  // duplicate GPU
    }
    return *comm = new Comm{s}, SUCCESS;
}
int ncclCommInitRank(Comm** comm, int ranks, Id id, int rank) { return ncclCommInitRankConfig(comm, ranks, id, rank, nullptr); }

int ncclCommDestroy(Comm* comm) {
    sub_finish();
    if (comm->state.use_count() > 1) wrong("a communicator is destroyed while a graph uses it, for which NCCL waits for ever");
    return delete comm, SUCCESS;
}
int ncclCommAbort(Comm* comm) { return comm->state->aborted = true, delete comm, SUCCESS; }
int ncclCommGetAsyncError(Comm* comm, int* result) { return *result = failing, SUCCESS; }
int ncclCommCount(Comm* comm, int* count) { return *count = comm->state->ranks, SUCCESS; }
int ncclCommUserRank(Comm* comm, int* rank) { return *rank = comm->state->rank, SUCCESS; }
int ncclCommCuDevice(Comm* comm, int* device) { return *device = comm->state->device, SUCCESS; }

int ncclAllReduce(const void* from, void* to, size_t count, int type, int op, Comm* comm, void* stream) {
    const std::shared_ptr<State> s = comm->state;
    if (op != 0 || type < FLOAT32 || type > BFLOAT16 || count * bytes_of(type) > MOST_BYTES) return INVALID_ARGUMENT;
    if (s->device != sub_device()) return INVALID_USAGE;
    return later([=] { return all_reduce(from, to, count, type, s, stream); });
}

int ncclGroupStart() { return ++groups, SUCCESS; }
int ncclGroupEnd() {
    if (!groups) return INVALID_USAGE;
    if (--groups) return SUCCESS;
    int result = SUCCESS;
    for (auto& call : std::exchange(grouped, {})) if (int error = call()) result = error;
    return result;
}

#define UNKNOWN(name) int name() { return INVALID_USAGE; }
UNKNOWN(ncclAllGather) UNKNOWN(ncclBcast) UNKNOWN(ncclBroadcast) UNKNOWN(ncclCommInitAll) UNKNOWN(ncclCommSplit)
UNKNOWN(ncclRecv) UNKNOWN(ncclReduce) UNKNOWN(ncclReduceScatter) UNKNOWN(ncclSend) UNKNOWN(ncclCommFinalize)

}  // extern "C"
