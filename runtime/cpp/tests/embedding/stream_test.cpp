#include "embedding/stream.hpp"

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <cmath>
#include <mutex>
#include <new>
#include <set>
#include <stdexcept>
#include <thread>

#include "itae/error.hpp"
#include "stub_session.hpp"
#include "thrown.hpp"

using itae::Entry;
using itae::Row;

namespace {

/// Entries 0 to `count` - 1; those of `bad` can't be read.
struct Numbers {
    int count;
    std::set<int> bad;
    std::atomic<int> given{0};

    itae::NextEntry source() {
        return [this]() -> std::optional<Entry> {
            if (given == count) return std::nullopt;
            const int number = given++;
            return Entry{"/root", std::to_string(number), bad.count(number) > 0 ? "can't be read" : ""};
        };
    }
};

/// The picture of an entry: its number in the first byte.
void prepare(const Entry& entry, void* target) {
    auto* picture = static_cast<std::uint8_t*>(target);
    std::fill(picture, picture + 12, std::uint8_t{0});
    picture[0] = static_cast<std::uint8_t>(std::stoi(entry.path) % 251);
    if (picture[0] % 7 == 0)
        std::this_thread::sleep_for(std::chrono::microseconds(200));  // so that later ones overtake it
}

itae::StreamOptions options(std::int64_t batch, int workers) {
    itae::StreamOptions made;
    made.batch = batch;
    made.workers = workers;
    return made;
}

}  // namespace

TEST_CASE("rows come in the order of their entries, in full batches") {
    const std::int64_t batch = GENERATE(1, 3, 8, 100);
    const int workers = GENERATE(1, 2, 8);
    StubSession session;
    std::vector<std::int64_t> sizes;
    session.on_run = [&](std::int64_t size) { sizes.push_back(size); };
    Numbers numbers{60, {0, 1, 5, 30, 31, 32, 33, 59}};
    int next = 0;
    const auto on_row = [&](const Row& row) {
        CHECK(row.entry.path == std::to_string(next));
        CHECK((row.embedding == nullptr) == (numbers.bad.count(next) > 0));
        CHECK(row.error == (row.embedding == nullptr ? "can't be read" : ""));
        if (row.embedding != nullptr) CHECK(row.embedding[1] == static_cast<float>(next));
        ++next;
    };
    CHECK(itae::embed_stream(session, numbers.source(), prepare, options(batch, workers), on_row) ==
          itae::End::all_done);
    CHECK(next == 60);
    std::vector<std::int64_t> expected(static_cast<std::size_t>(52 / batch), batch);
    if (52 % batch != 0) expected.push_back(52 % batch);
    CHECK(sizes == expected);  // whatever can't be read: the same batches
}

TEST_CASE("no entry gives no row") {
    StubSession session;
    Numbers numbers{0, {}};
    int rows = 0;
    itae::embed_stream(session, numbers.source(), prepare, options(8, 4), [&](const Row&) { ++rows; });
    CHECK(rows == 0);
}

TEST_CASE("pictures that can't be decoded, are not finite or don't fit into memory become rows with an error") {
    StubSession session;
    Numbers numbers{4, {}};
    const auto odd = [](const Entry& entry, void* target) {
        std::fill_n(static_cast<std::uint8_t*>(target), 12, std::uint8_t{255});
        if (entry.path == "0") throw itae::Error(itae::ErrorKind::image, "is empty");
        if (entry.path == "1") throw itae::Error(itae::ErrorKind::io, "can't be opened");
        if (entry.path == "2") throw std::bad_alloc();
    };
    std::vector<std::string> errors;
    itae::embed_stream(session, numbers.source(), odd, options(8, 2), [&](const Row& row) {
        CHECK(row.embedding == nullptr);
        errors.push_back(row.error);
    });
    CHECK(errors == std::vector<std::string>{"is empty", "can't be opened", "there is not enough memory to decode it",
                                             itae::not_finite});
}

TEST_CASE("decoding goes ahead while the model runs, and only so far") {
    StubSession session;
    Numbers numbers{1000, {}};
    int ahead = 0;
    int done = 0;
    session.on_run = [&](std::int64_t) { std::this_thread::sleep_for(std::chrono::milliseconds(2)); };
    itae::embed_stream(session, numbers.source(), prepare, options(4, 2), [&](const Row&) {
        ahead = std::max(ahead, numbers.given - done);
        ++done;
    });
    CHECK(ahead > 4);               // more than the batch that runs
    CHECK(ahead <= 4 + 2 * 4 + 2);  // that batch, two batches and a picture for each thread
}

TEST_CASE("the first error ends a stream, and its threads") {
    StubSession session;
    Numbers numbers{100000, {}};
    itae::NextEntry source = numbers.source();
    itae::Prepare decode = prepare;
    std::function<void(const Row&)> on_row = [](const Row&) {};
    const std::string where = GENERATE("source", "decoder", "model", "row");
    const auto fail = [&] { throw std::runtime_error(where); };
    if (where == "source") {
        source = [&, inner = numbers.source()]() -> std::optional<Entry> {
            if (numbers.given == 50) fail();
            return inner();
        };
    } else if (where == "decoder") {
        decode = [&](const Entry& entry, void* target) {
            if (entry.path == "50") fail();
            prepare(entry, target);
        };
    } else if (where == "model") {
        session.on_run = [&](std::int64_t) { fail(); };
    } else {
        on_row = [&](const Row& row) {
            if (row.entry.path == "50") fail();
        };
    }
    CHECK_THROWS_WITH(itae::embed_stream(session, source, decode, options(8, 4), on_row), where);
    const int given = numbers.given;
    CHECK(given < 100);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    CHECK(numbers.given == given);  // no thread is left
}

TEST_CASE("a stream can be stopped between pictures") {
    StubSession session;
    Numbers numbers{100000, {}};
    itae::StreamOptions how = options(8, 4);
    int rows = 0;
    how.stopped = [&] { return rows >= 40; };
    CHECK(itae::embed_stream(session, numbers.source(), prepare, how, [&](const Row&) { ++rows; }) ==
          itae::End::stopped);
    CHECK(rows == 40);
}
