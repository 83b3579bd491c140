// A stand-in for NVIDIA's driver, libcuda.so.1: its memory is the host's, and work is done at once. The functions are
// declared by cuda.h, so that none of ours differs from NVIDIA's.
//
// STAND_IN_GPUS, STAND_IN_NAME and STAND_IN_CAPABILITY describe the machine; the function that STAND_IN_FAILS names
// fails; what is left at the end is a line in the file STAND_IN_REPORT.
#include <cuda.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>

namespace {

std::string variable(const char* name, const char* otherwise) {
    const char* value = std::getenv(name);
    return value == nullptr ? otherwise : value;
}

struct Machine {
    std::mutex mutex;
    std::map<std::string, std::set<void*>> held;
    int contexts = 0;
    int problems = 0;
    ~Machine() {
        const std::string path = variable("STAND_IN_REPORT", "/dev/null");
        if (std::FILE* file = std::fopen(path.c_str(), "a")) {
            std::fprintf(file, "cuda: contexts %d, problems %d", contexts, problems);
            for (const auto& [kind, those] : held) std::fprintf(file, ", %s %zu", kind.c_str(), those.size());
            std::fprintf(file, "\n");
            std::fclose(file);
        }
    }
} machine;

thread_local int entered = 0;

CUresult status(const char* function) {
    const std::lock_guard<std::mutex> lock(machine.mutex);
    if (entered < 1) ++machine.problems;
    return variable("STAND_IN_FAILS", "") == function ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

CUresult made(const char* kind, void* one) {
    const std::lock_guard<std::mutex> lock(machine.mutex);
    machine.held[kind].insert(one);
    return CUDA_SUCCESS;
}

CUresult gone(const char* kind, void* one) {
    const std::lock_guard<std::mutex> lock(machine.mutex);
    if (entered < 1 || machine.held[kind].erase(one) != 1) ++machine.problems;
    std::free(one);
    return CUDA_SUCCESS;
}

}  // namespace

extern "C" {

CUresult cuInit(unsigned) {
    return variable("STAND_IN_FAILS", "") == "cuInit" ? CUDA_ERROR_SYSTEM_DRIVER_MISMATCH : CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int* count) {
    *count = std::atoi(variable("STAND_IN_GPUS", "1").c_str());
    return *count == 0 ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice* device, int number) {
    *device = number;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char* name, int size, CUdevice) {
    std::snprintf(name, static_cast<std::size_t>(size), "%s", variable("STAND_IN_NAME", "Stand-in").c_str());
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
    const std::string capability = variable("STAND_IN_CAPABILITY", "8.9");
    const std::size_t dot = capability.find('.');
    if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) {
        *value = std::stoi(capability.substr(0, dot));
    } else if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) {
        *value = std::stoi(capability.substr(dot + 1));
    } else {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
    if (variable("STAND_IN_FAILS", "") == "cuDevicePrimaryCtxRetain") return CUDA_ERROR_OUT_OF_MEMORY;
    const std::lock_guard<std::mutex> lock(machine.mutex);
    ++machine.contexts;
    *context = reinterpret_cast<CUcontext>(&machine);
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(CUdevice) {
    const std::lock_guard<std::mutex> lock(machine.mutex);
    --machine.contexts;
    return CUDA_SUCCESS;
}
CUresult cuCtxPushCurrent(CUcontext context) {
    if (variable("STAND_IN_FAILS", "") == "cuCtxPushCurrent") return CUDA_ERROR_OUT_OF_MEMORY;
    entered += context == reinterpret_cast<CUcontext>(&machine) ? 1 : 0;
    return CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent(CUcontext* context) {
    *context = reinterpret_cast<CUcontext>(&machine);
    --entered;
    return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
    *stream = static_cast<CUstream>(std::malloc(1));
    if (flags != CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult bad = status("cuStreamCreate")) return std::free(*stream), bad;
    return made("streams", *stream);
}
CUresult cuStreamDestroy(CUstream stream) { return gone("streams", stream); }
CUresult cuEventCreate(CUevent* event, unsigned flags) {
    *event = static_cast<CUevent>(std::malloc(1));
    if (flags != (CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING)) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult bad = status("cuEventCreate")) return std::free(*event), bad;
    return made("events", *event);
}
CUresult cuEventDestroy(CUevent event) { return gone("events", event); }
CUresult cuEventRecord(CUevent, CUstream) { return status("cuEventRecord"); }
CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned) { return status("cuStreamWaitEvent"); }
CUresult cuEventSynchronize(CUevent) { return status("cuEventSynchronize"); }

CUresult cuMemAlloc(CUdeviceptr* memory, std::size_t size) {
    if (const CUresult bad = status("cuMemAlloc")) return bad;
    void* taken = std::aligned_alloc(256, (size + 255) / 256 * 256);
    *memory = reinterpret_cast<CUdeviceptr>(taken);
    return made("device memory", taken);
}
CUresult cuMemFree(CUdeviceptr memory) { return gone("device memory", reinterpret_cast<void*>(memory)); }
CUresult cuMemHostAlloc(void** memory, std::size_t size, unsigned) {
    if (const CUresult bad = status("cuMemHostAlloc")) return bad;
    *memory = std::malloc(size);
    return made("pinned memory", *memory);
}
CUresult cuMemFreeHost(void* memory) { return gone("pinned memory", memory); }
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, std::size_t size, CUstream) {
    if (const CUresult bad = status("cuMemcpyHtoDAsync")) return bad;
    std::memcpy(reinterpret_cast<void*>(to), from, size);
    return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, std::size_t size, CUstream) {
    if (const CUresult bad = status("cuMemcpyDtoHAsync")) return bad;
    std::memcpy(to, reinterpret_cast<void*>(from), size);
    return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult error, const char** name) {
    *name = error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "another";
    return CUDA_SUCCESS;
}

}  // extern "C"
