#include "embedding/stream.hpp"

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <future>
#include <mutex>
#include <new>
#include <thread>

#include "itae/error.hpp"

namespace itae {
namespace {

constexpr std::size_t max_ahead = 512;  // pictures, however large a batch is

/// A place in the line of entries, reused when its entry is done.
struct Slot {
    Entry entry;
    Bytes input;
    std::string error;
    bool is_ready = false;
};

/// Entries decoded ahead by threads, taken in their order.
class Decoders {
  public:
    Decoders(const NextEntry& next, const Prepare& prepare, std::size_t ahead, std::size_t input_bytes, int workers)
        : next_(next), prepare_(prepare), input_bytes_(input_bytes), slots_(ahead) {
        try {
            for (int number = 0; number < workers; ++number) threads_.emplace_back([this] { work(); });
        } catch (...) {
            stop();
            throw;
        }
    }
    ~Decoders() { stop(); }
    Decoders(const Decoders&) = delete;
    Decoders& operator=(const Decoders&) = delete;

    /// The next entry when it is decoded; nullptr after the last. It stays until `give_back`.
    /// @throws what the source or a decoder threw.
    Slot* take() {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return failure_ || slot(taken_).is_ready || (is_over_ && taken_ == begun_); });
        if (failure_) std::rethrow_exception(failure_);
        if (!slot(taken_).is_ready) return nullptr;
        return &slot(taken_++);
    }

    /// The entry that was taken last is done with.
    void give_back() {
        const std::lock_guard<std::mutex> lock(mutex_);
        slot(done_++).is_ready = false;
        changed_.notify_all();
    }

  private:
    Slot& slot(std::size_t number) { return slots_[number % slots_.size()]; }

    void stop() noexcept {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            is_over_ = true;
            changed_.notify_all();
        }
        for (std::thread& thread : threads_) thread.join();
    }

    void work() noexcept {
        while (Slot* mine = begin()) {
            std::exception_ptr failure;
            if (mine->error.empty()) {
                try {
                    mine->input.resize(input_bytes_);
                    prepare_(mine->entry, mine->input.data());
                } catch (const Error& error) {
                    if (error.kind() == ErrorKind::image || error.kind() == ErrorKind::io)
                        mine->error = error.what();
                    else
                        failure = std::current_exception();
                } catch (const std::bad_alloc&) {
                    mine->error = "there is not enough memory to decode it";
                } catch (...) {
                    failure = std::current_exception();
                }
            }
            const std::lock_guard<std::mutex> lock(mutex_);
            mine->is_ready = true;
            if (failure) fail(failure);
            changed_.notify_all();
        }
    }

    /// Take the next entry into a free slot; nullptr at the end. Entries are numbered in the order of the source,
    /// which one thread at a time asks.
    Slot* begin() noexcept {
        std::unique_lock<std::mutex> source(source_mutex_);
        {
            std::unique_lock<std::mutex> lock(mutex_);
            changed_.wait(lock, [this] { return is_over_ || begun_ < done_ + slots_.size(); });
            if (is_over_) return nullptr;
        }
        std::optional<Entry> entry;
        std::exception_ptr failure;
        try {
            entry = next_();
        } catch (...) {
            failure = std::current_exception();
        }
        const std::lock_guard<std::mutex> lock(mutex_);
        if (failure) fail(failure);
        if (!entry) is_over_ = true;
        changed_.notify_all();
        if (is_over_) return nullptr;
        Slot& mine = slot(begun_++);
        mine.error = std::move(entry->error);
        entry->error.clear();
        mine.entry = std::move(*entry);
        return &mine;
    }

    /// The first failure is the one that counts.
    void fail(const std::exception_ptr& failure) {
        if (!failure_) failure_ = failure;
        is_over_ = true;
    }

    const NextEntry& next_;
    const Prepare& prepare_;
    const std::size_t input_bytes_;
    std::vector<Slot> slots_;
    std::mutex source_mutex_;  // taken before the other one
    std::mutex mutex_;
    std::condition_variable changed_;
    std::size_t begun_ = 0, taken_ = 0, done_ = 0;  // numbers of entries
    bool is_over_ = false;
    std::exception_ptr failure_;
    std::vector<std::thread> threads_;
};

/// Collects batches, runs them, and gives their rows in order.
class Batches {
  public:
    Batches(const Session& session, std::size_t size, const std::function<void(const Row&)>& on_row)
        : session_(session), size_(size), on_row_(on_row) {
        inputs_.reserve(std::min<std::size_t>(size, 64) * session.input_bytes());  // a larger batch may never fill
    }

    /// Take an entry with its input, or with the reason why it has none.
    void add(Slot& slot) {
        if (slot.error.empty()) {
            inputs_.insert(inputs_.end(), slot.input.begin(), slot.input.end());
            ++decoded_;
        }
        waiting_.push_back({std::move(slot.entry), std::move(slot.error)});
    }

    bool is_full() const { return decoded_ == size_; }
    /// Whether nothing that was added since the last batch needs the model.
    bool is_without_input() const { return decoded_ == 0; }

    /// Start the batch that was collected; give the rows of those before it, as far as they are not worth waiting.
    void start() {
        std::future<std::vector<Array>> outputs;
        if (decoded_ > 0) {
            outputs = session_.start(inputs_.data(), static_cast<std::int64_t>(decoded_), {"embedding"}, Numbers::any);
        }
        running_.push_back({std::move(waiting_), decoded_, std::move(outputs)});
        waiting_.clear();
        inputs_.clear();
        decoded_ = 0;
        const auto most = static_cast<std::size_t>(session_.batches_in_flight() - 1);
        while (running_.size() > most) finish_first();
    }

    /// Give the rows of all that was started.
    void finish() {
        while (!running_.empty()) finish_first();
    }

  private:
    struct Waiting {
        Entry entry;
        std::string error;
    };
    struct Running {
        std::vector<Waiting> entries;  // in order, also those that can't be read
        std::size_t decoded;
        std::future<std::vector<Array>> outputs;
    };

    void finish_first() {
        Running batch = std::move(running_.front());
        running_.pop_front();
        std::vector<float> vectors;
        std::size_t width = 0;
        if (batch.decoded > 0) {
            const std::vector<Array> outputs = batch.outputs.get();
            width = static_cast<std::size_t>(outputs.front().shape.back());
            vectors.resize(batch.decoded * width);
            std::memcpy(vectors.data(), outputs.front().data.data(), vectors.size() * sizeof(float));
        }
        const float* vector = vectors.data();
        const auto is_finite = [](float value) { return std::isfinite(value); };
        for (Waiting& one : batch.entries) {
            if (!one.error.empty()) {
                on_row_(Row{one.entry, nullptr, one.error});
                continue;
            }
            const bool good = std::all_of(vector, vector + width, is_finite);
            if (!good) one.error = not_finite;
            on_row_(Row{one.entry, good ? vector : nullptr, one.error});
            vector += width;
        }
    }

    const Session& session_;
    const std::size_t size_;
    const std::function<void(const Row&)>& on_row_;
    std::vector<Waiting> waiting_;
    Bytes inputs_;
    std::size_t decoded_ = 0;
    std::deque<Running> running_;
};

}  // namespace

End embed_stream(const Session& session, const NextEntry& next, const Prepare& prepare, const StreamOptions& options,
                 const std::function<void(const Row&)>& on_row) {
    const auto size = static_cast<std::size_t>(session.chosen_batch(options.batch));
    const int workers = std::max(1, options.workers);
    Batches batches(session, size, on_row);
    const std::size_t ahead = std::min<std::size_t>(2 * size, max_ahead) + static_cast<std::size_t>(workers);
    Decoders decoders(next, prepare, ahead, session.input_bytes(), workers);
    while (!options.stopped()) {
        Slot* slot = decoders.take();
        if (slot != nullptr) {
            batches.add(*slot);
            decoders.give_back();
        }
        if (slot == nullptr || batches.is_full() || batches.is_without_input()) batches.start();
        if (slot == nullptr) {
            batches.finish();
            return End::all_done;
        }
    }
    return End::stopped;
}

}  // namespace itae
