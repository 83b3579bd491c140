#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "itae/session.hpp"

namespace itae {

/// What a source gives: a picture under its key, or something that can't be read.
struct Entry {
    std::string root;  ///< an absolute folder, in UTF-8
    std::string path;  ///< relative to `root`
    /// Why it can't be read; empty: it can be tried.
    std::string error;
};

/// Gives the next entry, or none at the end. It is called by one thread at a time, not always the same one; it may
/// throw, which ends the stream.
using NextEntry = std::function<std::optional<Entry>()>;

/// Writes the model's input of an entry to `target`, `Session::input_bytes()` bytes. Any number of threads call it at
/// the same time. Error image and io are reasons of the entry's own; whatever else it throws ends the stream.
using Prepare = std::function<void(const Entry& entry, void* target)>;

/// How to stream.
struct StreamOptions {
    std::int64_t batch = 8;
    int workers = 1;
    /// Asked between batches: whether to end early, as after a signal.
    std::function<bool()> stopped = [] { return false; };
};

/// A row of the result: an entry with its embedding, or with the reason why it has none.
struct Row {
    const Entry& entry;
    /// `width` float32; nullptr: see `error`.
    const float* embedding;
    const std::string& error;
};

/// The reason of an entry for which the model gave NaN or infinity.
constexpr const char* not_finite = "the model gave NaN or infinity for it; export it with --precision fp32";

/// Why a stream ended.
enum class End { all_done, stopped };

/// Embed entries in their order: threads decode ahead while the model runs, 2 batches and a picture for each thread at
/// most.
///
/// @param session of a model with an output `embedding`.
/// @param on_row called in this thread with each entry, in order; what it throws ends the stream.
/// @throws Error mismatch, backend: as `Session::run`; and whatever `next`, `prepare` and `on_row` throw. All threads
///     have ended by then, and no later entry was taken than those that were decoding.
End embed_stream(const Session& session, const NextEntry& next, const Prepare& prepare, const StreamOptions& options,
                 const std::function<void(const Row&)>& on_row);

}  // namespace itae
