#include "backends/gpu_session.hpp"

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <thread>

#include "embedding/stream.hpp"
#include "fake_gpu.hpp"
#include "itae/error.hpp"
#include "thrown.hpp"

namespace {

using itae::ErrorKind;
using Outputs = std::vector<itae::Array>;

itae::Manifest manifest() {
    itae::Manifest made = StubSession::stub_manifest();
    made.builder = "tensorrt";
    made.batch = {{2, 4, 8}};
    made.outputs.push_back({"first", "uint8", {itae::dynamic_size}});
    return made;
}

std::unique_ptr<itae::Session> open(const std::shared_ptr<GpuRecord>& record, unsigned seed = 0) {
    auto gpu = std::make_unique<FakeGpu>(record, seed);
    FakeGpu& there = *gpu;
    return itae::make_gpu_session(manifest(), std::move(gpu),
                                  [&, record] { return std::make_unique<FakeProgram>(there, record); });
}

std::vector<std::uint8_t> pictures(std::size_t count, unsigned seed) {
    std::vector<std::uint8_t> made(12 * count);
    std::mt19937 random(seed);
    for (std::uint8_t& byte : made) byte = static_cast<std::uint8_t>(random() % 200);
    return made;
}

/// Whether outputs are those of these pictures.
bool are_of(const Outputs& outputs, const std::vector<std::uint8_t>& images) {
    const std::size_t count = images.size() / 12;
    bool good = outputs.at(0).shape == std::vector<std::int64_t>{static_cast<std::int64_t>(count), 2};
    for (std::size_t row = 0; row < count && good; ++row) {
        const std::vector<float> expected = StubSession::embedding_of(images.data() + 12 * row);
        good = std::equal(expected.begin(), expected.end(), outputs.at(0).as<float>() + 2 * row);
        if (outputs.size() > 1) good = good && outputs.at(1).as<std::uint8_t>()[row] == images[12 * row];
    }
    return good;
}

}  // namespace

TEST_CASE("a GPU session gives what the pictures have, in whatever order the GPU works") {
    const auto record = std::make_shared<GpuRecord>();
    const auto seed = GENERATE(range(0U, 40U));
    {
        const auto session = open(record, seed);
        CHECK(session->name() == "Fake 1.0 (Fake GPU)");
        CHECK(session->batches_in_flight() == 2);
        // Two on their way all the time, of sizes that make the slots grow; 1 is filled up to the smallest batch.
        std::vector<std::vector<std::uint8_t>> inputs;
        std::vector<std::future<Outputs>> running;
        for (const std::size_t count : {3U, 1U, 8U, 4U, 2U, 8U}) {
            inputs.push_back(pictures(count, seed + static_cast<unsigned>(count)));
            std::vector<std::uint8_t> given = inputs.back();
            running.push_back(session->start(given.data(), static_cast<std::int64_t>(count)));
            std::fill(given.begin(), given.end(), static_cast<std::uint8_t>(0));  // read already
            if (running.size() > 1) CHECK(are_of(running[running.size() - 2].get(), inputs[inputs.size() - 2]));
        }
        CHECK(are_of(running.back().get(), inputs.back()));
        CHECK(record->memory.size() == 2 * 6);  // two slots, of three tensors each, in both kinds of memory
    }
    CHECK(record->problems == std::vector<std::string>{});
    CHECK(record->is_clean());
}

TEST_CASE("only the outputs that are asked for are copied, in their order") {
    const auto record = std::make_shared<GpuRecord>();
    const auto session = open(record);
    const auto images = pictures(3, 1);
    const Outputs outputs = session->run(images.data(), 3, {"first"});
    REQUIRE(outputs.size() == 1);
    CHECK(outputs[0].dtype == "uint8");
    CHECK(outputs[0].data == itae::Bytes{images[0], images[12], images[24]});
}

TEST_CASE("a batch outside the profile never reaches the GPU") {
    const auto record = std::make_shared<GpuRecord>();
    const auto session = open(record);
    const int calls = record->calls;
    const auto images = pictures(9, 1);
    CHECK(thrown([&] { session->run(images.data(), 9); })->kind() == ErrorKind::image);
    CHECK(record->calls == calls);
}

TEST_CASE("a session ends after what runs on it: program, memory, streams") {
    const auto record = std::make_shared<GpuRecord>();
    {
        const auto session = open(record, 3);
        const auto images = pictures(4, 1);
        session->run(images.data(), 4);
        auto dropped = session->start(images.data(), 4);
    }
    CHECK(record->is_clean());
    const auto place = [&](const std::string& what) {
        return std::find(record->log.begin(), record->log.end(), what) - record->log.begin();
    };
    CHECK(place("program") < place("memory"));
    CHECK(place("memory") < place("stream"));
}

TEST_CASE("every call that fails gives one error, and nothing is left") {
    const bool for_good = GENERATE(false, true);
    int fails_at = 1;
    bool failed = true;
    int worked_again = 0;
    for (; failed; ++fails_at) {
        const auto record = std::make_shared<GpuRecord>();
        record->fails_at = fails_at;
        record->fails_for_good = for_good;
        std::vector<itae::Error> errors;
        const auto keep = [&](const std::optional<itae::Error>& error) {
            if (error) errors.push_back(*error);
        };
        keep(thrown([&] {
            const auto session = open(record, static_cast<unsigned>(fails_at));
            const auto first = pictures(3, 1), second = pictures(8, 2);
            keep(thrown([&] {
                auto one = session->start(first.data(), 3);
                auto two = session->start(second.data(), 8);
                const Outputs of_one = one.get(), of_two = two.get();  // CHECK would take what they throw
                CHECK(are_of(of_one, first));
                CHECK(are_of(of_two, second));
            }));
            if (for_good || errors.empty()) return;
            // A fault that passes leaves a session that works.
            const Outputs again = session->run(second.data(), 8);
            CHECK(are_of(again, second));
            ++worked_again;
        }));
        failed = record->failed;
        INFO("call " << fails_at << (for_good ? ", and all after it" : ""));
        CHECK(record->problems == std::vector<std::string>{});
        CHECK(record->is_clean());
        CHECK(errors.size() <= 1);
        for (const itae::Error& error : errors) {
            CHECK(error.kind() == ErrorKind::backend);
            const std::string words = error.what();
            const bool names_it = words.find("fault in ") != std::string::npos || words == "Fake 1.0 refuses";
            CHECK(names_it);
            CHECK(words.find("Fake ") == 0);
        }
    }
    CHECK(fails_at > 50);  // or no call was tried
    if (!for_good) CHECK(worked_again > 30);
}

TEST_CASE("threads share a GPU session and keep their results apart") {
    const auto record = std::make_shared<GpuRecord>();
    {
        const auto session = open(record, 5);
        std::atomic<int> wrong{0};
        std::vector<std::thread> threads;
        for (unsigned thread = 0; thread < 8; ++thread) {
            threads.emplace_back([&, thread] {
                for (unsigned round = 0; round < 20; ++round) {
                    const auto images = pictures(1 + (thread + round) % 8, 100 * thread + round);
                    const auto count = static_cast<std::int64_t>(images.size() / 12);
                    if (!are_of(session->run(images.data(), count), images)) ++wrong;
                }
            });
        }
        for (std::thread& thread : threads) thread.join();
        CHECK(wrong == 0);
        CHECK(record->memory.size() <= 2 * 6);  // no more slots than one stream needs are kept
    }
    CHECK(record->is_clean());
}

TEST_CASE("a stream keeps a second batch on the GPU, and its rows in order") {
    const auto record = std::make_shared<GpuRecord>();
    const auto session = open(record, 7);
    constexpr std::size_t count = 21;
    const auto images = pictures(count, 9);
    std::size_t next = 0;
    const itae::NextEntry entries = [&]() -> std::optional<itae::Entry> {
        if (next == count) return std::nullopt;
        const std::size_t number = next++;
        return itae::Entry{"/", std::to_string(number), number % 6 == 5 ? "is empty" : ""};
    };
    const itae::Prepare prepare = [&](const itae::Entry& entry, void* target) {
        std::memcpy(target, images.data() + 12 * std::stoul(entry.path), 12);
    };
    itae::StreamOptions options;
    options.batch = 4;
    std::size_t row = 0;
    std::size_t runs_at_first_row = 0;
    const auto is_run = [](const std::string& line) { return line.compare(0, 7, "enqueue") == 0; };
    itae::embed_stream(*session, entries, prepare, options, [&](const itae::Row& one) {
        if (row == 0)
            runs_at_first_row = static_cast<std::size_t>(std::count_if(record->log.begin(), record->log.end(), is_run));
        CHECK(one.entry.path == std::to_string(row));
        if (row % 6 == 5) {
            CHECK(one.error == "is empty");
        } else {
            CHECK(one.embedding[0] == StubSession::embedding_of(images.data() + 12 * row)[0]);
        }
        ++row;
    });
    CHECK(row == count);
    CHECK(runs_at_first_row == 2);
}
