#pragma once

#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "backends/gpu.hpp"
#include "itae/error.hpp"
#include "stub_session.hpp"

/// What a stand-in for a GPU did, and what is left of it: it outlives the stand-in.
struct GpuRecord {
    /// Number of calls that may fail so far, and the number of the one that does; 0: none.
    int calls = 0, fails_at = 0;
    /// Whether all calls from that one on fail, as after a fault that the GPU doesn't recover from.
    bool fails_for_good = false;
    bool failed = false;
    bool enter_failed = false;  // then things are given back without the GPU entered: there is no other way
    /// Uses of the GPU that a real one would punish.
    std::vector<std::string> problems;
    /// What was given back, in order, and `enqueue B` for each run.
    std::vector<std::string> log;
    std::set<void*> streams, events;
    std::map<void*, std::vector<std::uint8_t>> memory;  // of both kinds, by its address
    std::set<void*> pinned;
    int programs = 0, entered = 0;

    bool is_clean() const {
        return streams.empty() && events.empty() && memory.empty() && programs == 0 && entered == 0 && problems.empty();
    }
};

/// A stand-in for a GPU, as strict as a real one: work on a stream happens late, and in any order that streams and
/// events allow (seeded). New memory holds rubbish. So a missing event, or a buffer that is used too early, gives wrong
/// results; memory that is given back too early is a problem in the record.
class FakeGpu final : public itae::Gpu {
  public:
    explicit FakeGpu(std::shared_ptr<GpuRecord> record, unsigned seed = 0)
        : record_(std::move(record)), random_(seed) {}
    ~FakeGpu() override {
        for (const auto& [stream, jobs] : queues_)
            if (!jobs.empty()) record_->problems.emplace_back("a stream ended with work on it");
    }

    const std::string& name() const noexcept override { return name_; }

    void enter() override {
        const std::lock_guard<std::recursive_mutex> lock(mutex_);
        may_fail("enter");
        ++depth();
        ++record_->entered;
    }
    void leave() noexcept override {
        const std::lock_guard<std::recursive_mutex> lock(mutex_);
        --depth();
        --record_->entered;
    }

    void* create_stream() override { return created("create_stream", record_->streams); }
    void destroy_stream(void* stream) noexcept override {
        const std::lock_guard<std::recursive_mutex> lock(mutex_);
        if (!record_->failed && !queues_[stream].empty())
            record_->problems.emplace_back("a stream with work was ended");
        queues_.erase(stream);
        released("stream", stream, record_->streams);
    }

    void* create_event() override { return created("create_event", record_->events); }
    void destroy_event(void* event) noexcept override { released("event", event, record_->events); }

    void record(void* event, void* stream) override {
        const std::lock_guard<std::recursive_mutex> lock(mutex_);
        may_fail("record");
        const int number = ++recorded_[event];
        put(stream, {[this, event, number] { happened_[event] = number; }, nullptr, 0});
    }
    void wait(void* stream, void* event) override {
        const std::lock_guard<std::recursive_mutex> lock(mutex_);
        may_fail("wait");
        put(stream, {[] {}, event, recorded_[event]});
    }
    void synchronize(void* event) override {
        const std::lock_guard<std::recursive_mutex> lock(mutex_);
        may_fail("synchronize");
        while (happened_[event] < recorded_[event]) {
            if (step()) continue;
            record_->problems.emplace_back("an event was waited for that never happens");
            return;
        }
    }

    void* allocate(std::size_t size) override { return allocated("allocate", size, false); }
    void free(void* memory) noexcept override { freed("memory", memory); }
    void* allocate_pinned(std::size_t size) override { return allocated("allocate_pinned", size, true); }
    void free_pinned(void* memory) noexcept override { freed("pinned memory", memory); }

    void copy_in(void* device, const void* pinned, std::size_t size, void* stream) override {
        copy("copy_in", device, const_cast<void*>(pinned), size, stream);
    }
    void copy_out(void* pinned, const void* device, std::size_t size, void* stream) override {
        copy("copy_out", pinned, const_cast<void*>(device), size, stream);
    }

    /// Put work on a stream, as a library does that is given it.
    void launch(void* stream, std::function<void()> work) {
        const std::lock_guard<std::recursive_mutex> lock(mutex_);
        put(stream, {std::move(work), nullptr, 0});
    }
    /// Memory that is there, with `size` bytes at least; else nullptr, and a problem.
    std::uint8_t* bytes_at(void* address, std::size_t size) {
        const auto found = record_->memory.find(address);
        if (found != record_->memory.end() && found->second.size() >= size) return found->second.data();
        record_->problems.push_back("memory was used that was given back, or beyond its end");
        return nullptr;
    }
    void may_fail(const std::string& what) {
        const std::lock_guard<std::recursive_mutex> lock(mutex_);
        if (what != "enter" && depth() < 1) record_->problems.push_back(what + " without the GPU entered");
        const int call = ++record_->calls;
        const bool is_it = call == record_->fails_at || (record_->fails_for_good && call > record_->fails_at);
        if (record_->fails_at == 0 || !is_it) return;
        record_->failed = true;
        if (what == "enter") record_->enter_failed = true;
        throw itae::GpuFault("fault in " + what);
    }
    std::recursive_mutex& mutex() { return mutex_; }
    void must_be_entered(const std::string& what) {
        if (depth() < 1 && !record_->enter_failed)
            record_->problems.push_back(what + " was given back without the GPU entered");
    }

  private:
    struct Job {
        std::function<void()> work;
        void* event;  // that must have happened before
        int number;
    };

    static int& depth() {
        thread_local int here = 0;
        return here;
    }
    void* created(const std::string& what, std::set<void*>& those) {
        const std::lock_guard<std::recursive_mutex> lock(mutex_);
        may_fail(what);
        void* const made = reinterpret_cast<void*>(next_ += 256);  // NOLINT(performance-no-int-to-ptr)
        return *those.insert(made).first;
    }
    void released(const std::string& what, void* one, std::set<void*>& from) {
        const std::lock_guard<std::recursive_mutex> lock(mutex_);
        must_be_entered("a " + what);
        if (from.erase(one) != 1) record_->problems.push_back("a " + what + " was given back twice");
        record_->log.push_back(what);
    }
    void* allocated(const std::string& what, std::size_t size, bool is_pinned) {
        const std::lock_guard<std::recursive_mutex> lock(mutex_);
        may_fail(what);
        std::vector<std::uint8_t> bytes(size);
        for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random_());
        // Pinned memory is the program's own to write; the GPU's has an address that crashes whoever follows it.
        void* address = bytes.data();
        if (!is_pinned) address = reinterpret_cast<void*>(next_ += 4096);  // NOLINT(performance-no-int-to-ptr)
        record_->memory.emplace(address, std::move(bytes));
        if (is_pinned) record_->pinned.insert(address);
        return address;
    }
    void freed(const std::string& what, void* memory) {
        const std::lock_guard<std::recursive_mutex> lock(mutex_);
        must_be_entered(what);
        const bool was_pinned = record_->pinned.erase(memory) == 1;
        if (record_->memory.erase(memory) != 1 || was_pinned != (what == "pinned memory"))
            record_->problems.push_back(what + " was given back that is not");
        record_->log.push_back(what);
    }
    void copy(const std::string& what, void* to, void* from, std::size_t size, void* stream) {
        const std::lock_guard<std::recursive_mutex> lock(mutex_);
        may_fail(what);
        if (record_->pinned.count(what == "copy_in" ? from : to) != 1)
            record_->problems.push_back(what + ": not pinned");
        put(stream, {[this, to, from, size] {
                         std::uint8_t* target = bytes_at(to, size);
                         const std::uint8_t* source = bytes_at(from, size);
                         if (target != nullptr && source != nullptr) std::memcpy(target, source, size);
                     },
                     nullptr, 0});
    }
    void put(void* stream, Job job) {
        if (record_->streams.count(stream) != 1) record_->problems.emplace_back("work for a stream that is none");
        queues_[stream].push_back(std::move(job));
        while (random_() % 3 == 0 && step()) {
        }
    }
    /// Do one thing that can be done, on any stream; false: there is none.
    bool step() {
        std::vector<std::deque<Job>*> ready;
        for (auto& [stream, jobs] : queues_)
            if (!jobs.empty() &&
                (jobs.front().event == nullptr || happened_[jobs.front().event] >= jobs.front().number))
                ready.push_back(&jobs);
        if (ready.empty()) return false;
        std::deque<Job>& jobs = *ready[random_() % ready.size()];
        const Job job = std::move(jobs.front());
        jobs.pop_front();
        job.work();
        return true;
    }

    std::string name_ = "Fake GPU";
    std::shared_ptr<GpuRecord> record_;
    std::mt19937 random_;
    std::recursive_mutex mutex_;
    std::uintptr_t next_ = 1 << 20;
    std::map<void*, std::deque<Job>> queues_;
    std::map<void*, int> recorded_, happened_;
};

/// A program on a stand-in: the embedding of StubSession, and an output `first` with the first byte of each picture.
class FakeProgram final : public itae::Program {
  public:
    FakeProgram(FakeGpu& gpu, std::shared_ptr<GpuRecord> record) : gpu_(gpu), record_(std::move(record)) {
        gpu_.may_fail("load");
        ++record_->programs;
    }
    ~FakeProgram() override {
        gpu_.must_be_entered("a program");
        --record_->programs;
        record_->log.emplace_back("program");
    }
    std::string name() const override { return "Fake 1.0"; }
    void enqueue(std::int64_t batch, const itae::Addresses& addresses, void* stream) override {
        const std::lock_guard<std::recursive_mutex> lock(gpu_.mutex());
        record_->log.push_back("enqueue " + std::to_string(batch));
        try {
            gpu_.may_fail("enqueue");
        } catch (const itae::GpuFault&) {
            throw itae::Error(itae::ErrorKind::backend, "Fake 1.0 refuses");
        }
        gpu_.launch(stream, [this, batch, addresses] {
            const auto count = static_cast<std::size_t>(batch);
            const std::uint8_t* input = gpu_.bytes_at(addresses.at(0).second, count * 12);
            std::uint8_t* embedding = gpu_.bytes_at(addresses.at(1).second, count * 8);
            std::uint8_t* first = gpu_.bytes_at(addresses.at(2).second, count);
            if (input == nullptr || embedding == nullptr || first == nullptr) return;
            for (std::size_t row = 0; row < count; ++row) {
                const std::vector<float> vector = StubSession::embedding_of(input + 12 * row);
                std::memcpy(embedding + 8 * row, vector.data(), 8);
                first[row] = input[12 * row];
            }
        });
    }

  private:
    FakeGpu& gpu_;
    std::shared_ptr<GpuRecord> record_;
};
