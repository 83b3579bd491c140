#include "backends/gpu_session.hpp"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

#include "backends/backends.hpp"
#include "itae/error.hpp"

namespace itae {
namespace {

/// Batches on their way at the same time, and slots that are kept for the next ones.
constexpr int in_flight = 2;

/// A GPU's faults as errors of ours, `what` before them.
template <typename Call>
auto translated(const std::string& what, Call&& call) {
    try {
        return call();
    } catch (const GpuFault& fault) {
        throw Error(ErrorKind::backend, what + ": " + fault.what());
    }
}

GpuStream stream_of(Gpu& gpu) { return GpuStream(gpu.create_stream(), {&gpu}); }
GpuEvent event_of(Gpu& gpu) { return GpuEvent(gpu.create_event(), {&gpu}); }

/// Memory for one of the model's tensors, pinned and on the GPU.
struct Buffer {
    Buffer(Gpu& gpu, const TensorInfo& tensor)
        : name(tensor.name), row(bytes_of(tensor)), device(nullptr, {&gpu}), pinned(nullptr, {&gpu}) {}

    /// Make room for a batch; what was in it is lost.
    void grow(std::size_t batch) {
        if (batch <= rows) return;
        device.reset();
        pinned.reset();
        rows = 0;
        Gpu* gpu = device.get_deleter().gpu;
        device.reset(gpu->allocate(batch * row));
        pinned.reset(gpu->allocate_pinned(batch * row));
        rows = batch;
    }

    std::string name;
    std::size_t row;  // bytes of one picture's share
    std::size_t rows = 0;
    GpuMemory device;
    PinnedMemory pinned;
};

/// Where one batch lives on its way.
struct Slot {
    Slot(Gpu& gpu, const Manifest& manifest)
        : uploaded(event_of(gpu)), computed(event_of(gpu)), done(event_of(gpu)), input(gpu, manifest.input) {
        for (const TensorInfo& output : manifest.outputs) outputs.emplace_back(gpu, output);
    }

    void grow(std::size_t batch) {
        input.grow(batch);
        for (Buffer& output : outputs) output.grow(batch);
    }

    Addresses addresses() const {
        Addresses all{{input.name, input.device.get()}};
        for (const Buffer& output : outputs) all.emplace_back(output.name, output.device.get());
        return all;
    }

    Buffer& output(const std::string& name) {
        return *std::find_if(outputs.begin(), outputs.end(), [&](const Buffer& one) { return one.name == name; });
    }

    GpuEvent uploaded, computed, done;
    Buffer input;
    std::vector<Buffer> outputs;
};

class GpuSession final : public Session {
  public:
    GpuSession(Manifest manifest, std::unique_ptr<Gpu> gpu, const LoadProgram& load)
        : Session(std::move(manifest), gpu->name()), gpu_(std::move(gpu)) {
        translated(gpu_->name() + " fails", [&] {
            const OnGpu on(*gpu_);
            try {
                copying_in_ = stream_of(*gpu_);
                computing_ = stream_of(*gpu_);
                copying_out_ = stream_of(*gpu_);
                program_ = load();
            } catch (...) {
                close_streams();  // here, where the GPU is entered
                throw;
            }
            name_ = program_->name() + " (" + gpu_->name() + ")";
        });
    }

    ~GpuSession() override {
        try {
            const OnGpu on(*gpu_);
            try {
                wait_for_all();
            } catch (const GpuFault&) {
                // What is lost runs no more.
            }
            release();
        } catch (const GpuFault&) {
            release();  // the GPU can't even be entered: the library gives its handles up with it
        }
    }

    int batches_in_flight() const noexcept override { return in_flight; }

  protected:
    std::vector<Array> compute(const void* input, std::int64_t batch,
                               const std::vector<std::string>& wanted) const override {
        return begin(input, batch, wanted).get();
    }

    std::future<std::vector<Array>> begin(const void* input, std::int64_t batch,
                                          const std::vector<std::string>& wanted) const override {
        auto slot = translated(failed(batch), [&] {
            const OnGpu on(*gpu_);
            std::unique_ptr<Slot> taken = take(static_cast<std::size_t>(batch));
            try {
                put_on_streams(*taken, input, static_cast<std::size_t>(batch), wanted);
            } catch (...) {
                settle(std::move(taken));
                throw;
            }
            return taken;
        });
        return std::async(std::launch::deferred, [pending = Pending(*this, std::move(slot), batch, wanted)]() mutable {
            return pending.finish();
        });
    }

  private:
    /// A batch on its way. If nobody asks for its outputs, its slot is given back once nothing touches it.
    class Pending {
      public:
        Pending(const GpuSession& session, std::unique_ptr<Slot> slot, std::int64_t batch,
                std::vector<std::string> wanted)
            : session_(&session), slot_(std::move(slot)), batch_(batch), wanted_(std::move(wanted)) {}
        Pending(Pending&&) = default;
        Pending& operator=(Pending&&) = delete;
        ~Pending() {
            if (!slot_) return;
            try {
                const OnGpu on(*session_->gpu_);
                session_->settle(std::move(slot_));
            } catch (...) {
                slot_.reset();
            }
        }

        std::vector<Array> finish() { return session_->finish(slot_, batch_, wanted_); }

      private:
        const GpuSession* session_;
        std::unique_ptr<Slot> slot_;
        std::int64_t batch_;
        std::vector<std::string> wanted_;
    };

    std::string failed(std::int64_t batch) const {
        return name() + " failed on " + std::to_string(batch) + " images (a smaller --batch takes less memory)";
    }

    /// A slot that no batch is in, with room for a batch.
    std::unique_ptr<Slot> take(std::size_t batch) const {
        std::unique_ptr<Slot> slot;
        {
            const std::lock_guard<std::mutex> lock(using_);
            if (!idle_.empty()) {
                slot = std::move(idle_.back());
                idle_.pop_back();
            }
        }
        if (!slot) slot = std::make_unique<Slot>(*gpu_, manifest());
        slot->grow(batch);
        return slot;
    }

    void put_on_streams(Slot& slot, const void* input, std::size_t batch,
                        const std::vector<std::string>& wanted) const {
        const std::size_t bytes = batch * slot.input.row;
        std::memcpy(slot.input.pinned.get(), input, bytes);
        const std::lock_guard<std::mutex> lock(using_);
        gpu_->copy_in(slot.input.device.get(), slot.input.pinned.get(), bytes, copying_in_.get());
        gpu_->record(slot.uploaded.get(), copying_in_.get());
        gpu_->wait(computing_.get(), slot.uploaded.get());
        program_->enqueue(static_cast<std::int64_t>(batch), slot.addresses(), computing_.get());
        gpu_->record(slot.computed.get(), computing_.get());
        gpu_->wait(copying_out_.get(), slot.computed.get());
        for (const std::string& name : wanted) {
            Buffer& output = slot.output(name);
            gpu_->copy_out(output.pinned.get(), output.device.get(), batch * output.row, copying_out_.get());
        }
        gpu_->record(slot.done.get(), copying_out_.get());
    }

    /// Wait for a batch, and give what came out.
    std::vector<Array> finish(std::unique_ptr<Slot>& slot, std::int64_t batch,
                              const std::vector<std::string>& wanted) const {
        return translated(failed(batch), [&] {
            const OnGpu on(*gpu_);
            gpu_->synchronize(slot->done.get());
            std::vector<Array> arrays;
            for (const std::string& name : wanted) {
                const auto& outputs = manifest().outputs;
                const TensorInfo& tensor = *std::find_if(outputs.begin(), outputs.end(),
                                                         [&](const TensorInfo& one) { return one.name == name; });
                const Buffer& output = slot->output(name);
                Array array{tensor.dtype, tensor.shape, {}};
                array.shape.front() = batch;
                const auto* data = static_cast<const std::uint8_t*>(output.pinned.get());
                array.data.assign(data, data + static_cast<std::size_t>(batch) * output.row);
                arrays.push_back(std::move(array));
            }
            give(std::move(slot));
            return arrays;
        });
    }

    /// Take back a slot that nothing touches any more.
    void give(std::unique_ptr<Slot> slot) const {
        const std::lock_guard<std::mutex> lock(using_);
        if (idle_.size() < in_flight) idle_.push_back(std::move(slot));
    }

    /// Take back a slot whose batch failed or is not waited for, once nothing touches it.
    void settle(std::unique_ptr<Slot> slot) const noexcept {
        try {
            {
                const std::lock_guard<std::mutex> lock(using_);
                wait_for_all();
            }
            give(std::move(slot));
        } catch (...) {
            slot.reset();  // the error that led here is the one to report
        }
    }

    void wait_for_all() const {
        const GpuEvent event = event_of(*gpu_);
        for (const GpuStream* stream : {&copying_in_, &computing_, &copying_out_}) {
            gpu_->record(event.get(), stream->get());
            gpu_->synchronize(event.get());
        }
    }

    void release() noexcept {
        program_.reset();
        idle_.clear();
        close_streams();
    }

    void close_streams() noexcept {
        for (GpuStream* stream : {&copying_in_, &computing_, &copying_out_}) stream->reset();
    }

    std::unique_ptr<Gpu> gpu_;
    GpuStream copying_in_, computing_, copying_out_;
    std::unique_ptr<Program> program_;
    mutable std::mutex using_;  // of the streams, the program and the idle slots
    mutable std::vector<std::unique_ptr<Slot>> idle_;
};

}  // namespace

std::unique_ptr<Session> make_gpu_session(Manifest manifest, std::unique_ptr<Gpu> gpu, const LoadProgram& load) {
    return std::make_unique<GpuSession>(std::move(manifest), std::move(gpu), load);
}

}  // namespace itae
