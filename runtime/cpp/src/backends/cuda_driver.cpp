// NVIDIA's driver, opened where it is. Its functions have been the same for ten years, and need no header to build
// with, no library of the CUDA toolkit to run with, and no GPU to start with.
#include <dlfcn.h>

#include <array>
#include <mutex>

#include "backends/engine.hpp"
#include "backends/shared_library.hpp"
#include "itae/error.hpp"

namespace itae {
namespace {

// As cuda.h has them.
using CUresult = int;
using CUdevice = int;
using CUdeviceptr = unsigned long long;
constexpr CUresult cuda_success = 0, cuda_error_no_device = 100;
constexpr int capability_major = 75, capability_minor = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...
constexpr unsigned stream_non_blocking = 1;                  // CU_STREAM_NON_BLOCKING
constexpr unsigned event_blocking_sync = 1, event_disable_timing = 2;

constexpr const char* library_name = "libcuda.so.1";

struct Driver {
    CUresult (*init)(unsigned flags);
    CUresult (*device_count)(int* count);
    CUresult (*device)(CUdevice* device, int number);
    CUresult (*device_name)(char* name, int size, CUdevice device);
    CUresult (*device_attribute)(int* value, int attribute, CUdevice device);
    CUresult (*retain_context)(void** context, CUdevice device);
    CUresult (*release_context)(CUdevice device);
    CUresult (*push_context)(void* context);
    CUresult (*pop_context)(void** context);
    CUresult (*create_stream)(void** stream, unsigned flags);
    CUresult (*destroy_stream)(void* stream);
    CUresult (*create_event)(void** event, unsigned flags);
    CUresult (*destroy_event)(void* event);
    CUresult (*record_event)(void* event, void* stream);
    CUresult (*wait_event)(void* stream, void* event, unsigned flags);
    CUresult (*synchronize_event)(void* event);
    CUresult (*allocate)(CUdeviceptr* memory, std::size_t size);
    CUresult (*free)(CUdeviceptr memory);
    CUresult (*allocate_host)(void** memory, std::size_t size, unsigned flags);
    CUresult (*free_host)(void* memory);
    CUresult (*copy_in)(CUdeviceptr to, const void* from, std::size_t size, void* stream);
    CUresult (*copy_out)(void* to, CUdeviceptr from, std::size_t size, void* stream);
    CUresult (*error_name)(CUresult error, const char** name);
};

/// The driver, which stays loaded. @throws Error backend: there is none.
const Driver& driver(const std::string& what) {
    static std::mutex mutex;
    static Driver found{};
    static bool is_loaded = false;
    const std::lock_guard<std::mutex> lock(mutex);
    if (is_loaded) return found;
    std::string problem;
    LibraryHandle handle = open_library(library_name, problem);
    bool has_all = handle != nullptr;
    const auto bind = [&](auto& function, const char* name) {
        void* symbol = has_all ? dlsym(handle.get(), name) : nullptr;
        has_all = symbol != nullptr;
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
    };
    bind(found.init, "cuInit");
    bind(found.device_count, "cuDeviceGetCount");
    bind(found.device, "cuDeviceGet");
    bind(found.device_name, "cuDeviceGetName");
    bind(found.device_attribute, "cuDeviceGetAttribute");
    bind(found.retain_context, "cuDevicePrimaryCtxRetain");
    bind(found.release_context, "cuDevicePrimaryCtxRelease_v2");
    bind(found.push_context, "cuCtxPushCurrent_v2");
    bind(found.pop_context, "cuCtxPopCurrent_v2");
    bind(found.create_stream, "cuStreamCreate");
    bind(found.destroy_stream, "cuStreamDestroy_v2");
    bind(found.create_event, "cuEventCreate");
    bind(found.destroy_event, "cuEventDestroy_v2");
    bind(found.record_event, "cuEventRecord");
    bind(found.wait_event, "cuStreamWaitEvent");
    bind(found.synchronize_event, "cuEventSynchronize");
    bind(found.allocate, "cuMemAlloc_v2");
    bind(found.free, "cuMemFree_v2");
    bind(found.allocate_host, "cuMemHostAlloc");
    bind(found.free_host, "cuMemFreeHost");
    bind(found.copy_in, "cuMemcpyHtoDAsync_v2");
    bind(found.copy_out, "cuMemcpyDtoHAsync_v2");
    bind(found.error_name, "cuGetErrorName");
    if (!has_all)
        throw Error(ErrorKind::backend,
                    what + " needs an NVIDIA GPU, and there is no driver here (" + library_name + ")");
    handle.release();  // NOLINT(bugprone-unused-return-value): it stays until the process ends
    is_loaded = true;
    return found;
}

void check(const Driver& driver, CUresult status, const char* function) {
    if (status == cuda_success) return;
    const char* name = nullptr;
    driver.error_name(status, &name);
    throw GpuFault("CUDA error " + std::to_string(status) + (name == nullptr ? "" : " (" + std::string(name) + ")") +
                   " of " + function);
}

/// The driver and a GPU of it. @throws Error as `read_gpu`
std::pair<const Driver&, CUdevice> found_gpu(int number, const std::string& what) {
    const Driver& here = driver(what);
    int count = 0;
    CUresult status = here.init(0);
    if (status == cuda_success) status = here.device_count(&count);
    const auto refuse = [&](const std::string& why) { throw Error(ErrorKind::backend, what + why); };
    if (status != cuda_success && status != cuda_error_no_device)
        refuse(" needs an NVIDIA GPU, and the driver here fails: CUDA error " + std::to_string(status));
    if (status == cuda_error_no_device || count < 1) refuse(" needs an NVIDIA GPU, and the driver here finds none");
    if (number >= count)
        refuse(" was to run on GPU " + std::to_string(number) + ", the driver here has " + std::to_string(count) +
               ", numbered from 0");
    CUdevice device = 0;
    if (here.device(&device, number) != cuda_success)
        refuse(": the driver here fails on GPU " + std::to_string(number));
    return {here, device};
}

std::string name_of(const Driver& driver, CUdevice device) {
    std::array<char, 256> name{};
    check(driver, driver.device_name(name.data(), static_cast<int>(name.size()), device), "cuDeviceGetName");
    name.back() = '\0';
    return name.data();
}

class CudaGpu final : public Gpu {
  public:
    CudaGpu(const Driver& driver, CUdevice device) : driver_(driver), device_(device), name_(name_of(driver, device)) {
        // The context that TensorRT uses too.
        check(driver_, driver_.retain_context(&context_, device_), "cuDevicePrimaryCtxRetain");
    }
    ~CudaGpu() override { driver_.release_context(device_); }

    const std::string& name() const noexcept override { return name_; }
    void enter() override { check(driver_, driver_.push_context(context_), "cuCtxPushCurrent"); }
    void leave() noexcept override {
        void* popped = nullptr;
        driver_.pop_context(&popped);
    }

    void* create_stream() override {
        void* stream = nullptr;
        check(driver_, driver_.create_stream(&stream, stream_non_blocking), "cuStreamCreate");
        return stream;
    }
    void destroy_stream(void* stream) noexcept override { driver_.destroy_stream(stream); }

    void* create_event() override {
        void* event = nullptr;
        // Blocking: else the thread that waits keeps a core busy that could decode pictures.
        check(driver_, driver_.create_event(&event, event_blocking_sync | event_disable_timing), "cuEventCreate");
        return event;
    }
    void destroy_event(void* event) noexcept override { driver_.destroy_event(event); }
    void record(void* event, void* stream) override {
        check(driver_, driver_.record_event(event, stream), "cuEventRecord");
    }
    void wait(void* stream, void* event) override {
        check(driver_, driver_.wait_event(stream, event, 0), "cuStreamWaitEvent");
    }
    void synchronize(void* event) override { check(driver_, driver_.synchronize_event(event), "cuEventSynchronize"); }

    void* allocate(std::size_t size) override {
        CUdeviceptr memory = 0;
        check(driver_, driver_.allocate(&memory, size), "cuMemAlloc");
        return reinterpret_cast<void*>(memory);  // NOLINT(performance-no-int-to-ptr): as TensorRT takes it
    }
    void free(void* memory) noexcept override { driver_.free(reinterpret_cast<CUdeviceptr>(memory)); }
    void* allocate_pinned(std::size_t size) override {
        void* memory = nullptr;
        check(driver_, driver_.allocate_host(&memory, size, 0), "cuMemHostAlloc");
        return memory;
    }
    void free_pinned(void* memory) noexcept override { driver_.free_host(memory); }

    void copy_in(void* device, const void* pinned, std::size_t size, void* stream) override {
        check(driver_, driver_.copy_in(reinterpret_cast<CUdeviceptr>(device), pinned, size, stream),
              "cuMemcpyHtoDAsync");
    }
    void copy_out(void* pinned, const void* device, std::size_t size, void* stream) override {
        check(driver_, driver_.copy_out(pinned, reinterpret_cast<CUdeviceptr>(device), size, stream),
              "cuMemcpyDtoHAsync");
    }

  private:
    const Driver& driver_;
    CUdevice device_;
    std::string name_;
    void* context_ = nullptr;
};

/// A call of the driver's, its faults as errors of ours.
template <typename Call>
auto translated(int number, const std::string& what, Call&& call) {
    try {
        return call();
    } catch (const GpuFault& fault) {
        throw Error(ErrorKind::backend, what + ": GPU " + std::to_string(number) + " fails: " + fault.what());
    }
}

}  // namespace

GpuInfo read_gpu(int number, const std::string& what) {
    const auto [here, device] = found_gpu(number, what);
    return translated(number, what, [&, &here = here, device = device] {
        int major = 0, minor = 0;
        check(here, here.device_attribute(&major, capability_major, device), "cuDeviceGetAttribute");
        check(here, here.device_attribute(&minor, capability_minor, device), "cuDeviceGetAttribute");
        return GpuInfo{name_of(here, device), std::to_string(major) + "." + std::to_string(minor)};
    });
}

std::unique_ptr<Gpu> open_gpu(int number, const std::string& what) {
    const auto [here, device] = found_gpu(number, what);
    return translated(number, what, [&here = here, device = device]() -> std::unique_ptr<Gpu> {
        return std::make_unique<CudaGpu>(here, device);
    });
}

}  // namespace itae
