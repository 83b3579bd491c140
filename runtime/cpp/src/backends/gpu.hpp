#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace itae {

/// What a GPU's library says when it fails; those who called it say what for.
class GpuFault : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// One GPU as a session needs it: memory, streams, events, copies. `CudaGpu` is NVIDIA's; tests have a stand-in.
///
/// Handles and addresses are what the library gives; only it looks inside. What is not noexcept throws GpuFault. Apart
/// from `name`, everything is called between `enter` and `leave` in the same thread; threads may call at the same time.
class Gpu {
  public:
    Gpu() = default;
    virtual ~Gpu() = default;
    Gpu(const Gpu&) = delete;
    Gpu& operator=(const Gpu&) = delete;

    /// `NVIDIA H100 PCIe`.
    virtual const std::string& name() const noexcept = 0;

    /// Let this thread's calls go to this GPU.
    virtual void enter() = 0;
    /// Give the thread back the GPU that it had before.
    virtual void leave() noexcept = 0;

    /// A new stream: what is put on it is done in order, beside what other streams do.
    virtual void* create_stream() = 0;
    virtual void destroy_stream(void* stream) noexcept = 0;

    virtual void* create_event() = 0;
    virtual void destroy_event(void* event) noexcept = 0;
    /// Let the event happen when the stream has done what was put on it so far.
    virtual void record(void* event, void* stream) = 0;
    /// Put on the stream: wait for the event, as it was recorded last.
    virtual void wait(void* stream, void* event) = 0;
    /// Let this thread wait for the event.
    virtual void synchronize(void* event) = 0;

    /// Memory of the GPU, for all streams, aligned to 256 bytes.
    virtual void* allocate(std::size_t size) = 0;
    virtual void free(void* memory) noexcept = 0;
    /// Memory of the host that the GPU copies from and to while the CPU does something else.
    virtual void* allocate_pinned(std::size_t size) = 0;
    virtual void free_pinned(void* memory) noexcept = 0;

    /// Put on the stream: copy from pinned memory to the GPU's.
    virtual void copy_in(void* device, const void* pinned, std::size_t size, void* stream) = 0;
    /// Put on the stream: copy from the GPU's memory to pinned memory.
    virtual void copy_out(void* pinned, const void* device, std::size_t size, void* stream) = 0;
};

/// A block in which this thread's calls go to a GPU.
class OnGpu {
  public:
    explicit OnGpu(Gpu& gpu) : gpu_(gpu) { gpu_.enter(); }
    ~OnGpu() { gpu_.leave(); }
    OnGpu(const OnGpu&) = delete;
    OnGpu& operator=(const OnGpu&) = delete;

  private:
    Gpu& gpu_;
};

/// An owner of something that a GPU gave; destroyed on that GPU, while it is entered.
template <void (Gpu::*Release)(void*) noexcept>
struct GiveBack {
    Gpu* gpu;
    void operator()(void* handle) const noexcept { (gpu->*Release)(handle); }
};
using GpuStream = std::unique_ptr<void, GiveBack<&Gpu::destroy_stream>>;
using GpuEvent = std::unique_ptr<void, GiveBack<&Gpu::destroy_event>>;
using GpuMemory = std::unique_ptr<void, GiveBack<&Gpu::free>>;
using PinnedMemory = std::unique_ptr<void, GiveBack<&Gpu::free_pinned>>;

/// Addresses on the GPU, by the names of a model's input and outputs.
using Addresses = std::vector<std::pair<std::string, void*>>;

/// A model that a GPU computes on a stream. One thread at a time calls it, with the GPU entered; it is destroyed so
/// too.
class Program {
  public:
    Program() = default;
    virtual ~Program() = default;
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;

    /// The library with its version: `TensorRT 10.9.0.34`.
    virtual std::string name() const = 0;

    /// Put the model's run on a stream.
    ///
    /// @param batch within the model's limits.
    /// @throws Error backend: the library refuses.
    virtual void enqueue(std::int64_t batch, const Addresses& addresses, void* stream) = 0;
};

}  // namespace itae
