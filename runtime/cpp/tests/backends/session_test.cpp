#include "itae/session.hpp"

#include <catch2/catch.hpp>
#include <cmath>

#include "stub_session.hpp"
#include "thrown.hpp"

using itae::ErrorKind;

TEST_CASE("a session checks what goes in") {
    StubSession session;
    const std::vector<std::uint8_t> picture(12, 1);
    CHECK(session.run(picture.data(), 1).front().as<float>()[0] == 12);
    CHECK(thrown([&] { session.run(picture.data(), 0); })->kind() == ErrorKind::image);
    CHECK(thrown([&] { session.run(nullptr, 1); })->kind() == ErrorKind::usage);
    const auto unknown = thrown([&] { session.run(picture.data(), 1, {"mask"}); });
    REQUIRE(unknown);
    CHECK(unknown->what() ==
          std::string("the model has no output `mask`, only embedding; see the exporter's --outputs"));
}

TEST_CASE("a float32 input with NaN or infinity is refused") {
    itae::Manifest manifest = StubSession::stub_manifest();
    manifest.input = {"pixel_values", "float32", {itae::dynamic_size, 3}};
    StubSession session(manifest);
    std::vector<float> picture{1, 2, 3};
    CHECK_FALSE(thrown([&] { session.run(picture.data(), 1); }));
    picture[2] = GENERATE(std::nanf(""), HUGE_VALF, -HUGE_VALF);
    CHECK(thrown([&] { session.run(picture.data(), 1); })->what() ==
          std::string("a batch that holds NaN or infinity: the model takes `pixel_values` as float32 (batch, 3)"));
}

TEST_CASE("a session checks what comes out") {
    StubSession session;
    std::vector<std::uint8_t> pictures(24, 255);
    const auto not_finite = thrown([&] { session.run(pictures.data(), 2); });
    REQUIRE(not_finite);
    CHECK(not_finite->kind() == ErrorKind::mismatch);
    CHECK(not_finite->what() ==
          std::string(
              "stub.onnx gave NaN or infinity in `embedding` for 2 of 2 images; export it with --precision fp32"));
    CHECK_FALSE(thrown([&] { session.run(pictures.data(), 2, {}, itae::Numbers::any); }));
    session.columns = 3;
    CHECK(
        thrown([&] { session.run(pictures.data(), 2); })->what() ==
        std::string("stub.onnx gave `embedding` as float32 (2, 3), its manifest says float32 (2, 2): export it again"));
    session.columns = 2;
    session.dtype = "float16";
    CHECK(thrown([&] { session.run(pictures.data(), 2); })->kind() == ErrorKind::mismatch);
}

TEST_CASE("an engine's smallest batch is filled up, and the extra rows are dropped") {
    itae::Manifest manifest = StubSession::stub_manifest();
    manifest.builder = "tensorrt";
    manifest.batch = {{4, 6, 8}};
    StubSession session(manifest);
    std::vector<std::int64_t> sizes;
    session.on_run = [&](std::int64_t size) { sizes.push_back(size); };
    std::vector<std::uint8_t> pictures(24, 1);
    pictures[12] = 7;
    const auto outputs = session.run(pictures.data(), 2);
    CHECK(outputs.front().shape == std::vector<std::int64_t>{2, 2});
    CHECK(outputs.front().data.size() == 16);
    CHECK(outputs.front().as<float>()[2] == 18);
    CHECK(sizes == std::vector<std::int64_t>{4});
    CHECK(session.chosen_batch(0) == 6);
    CHECK(session.chosen_batch(8) == 8);
    CHECK(thrown([&] { session.chosen_batch(9); })->what() ==
          std::string("a batch of 9: the model takes 1 to 8 at a time"));
    CHECK(thrown([&] { session.run(pictures.data(), 9); })->kind() == ErrorKind::image);
}

TEST_CASE("an ONNX file takes any batch, and 8 by default") {
    StubSession session;
    CHECK(session.smallest_batch() == 1);
    CHECK(session.chosen_batch(0) == 8);
    CHECK(session.chosen_batch(1000) == 1000);
    CHECK(thrown([&] { session.chosen_batch(-1); })->kind() == ErrorKind::usage);
}

TEST_CASE("shapes that are no batch of anything are refused") {
    itae::Manifest manifest = StubSession::stub_manifest();
    manifest.outputs.front().shape =
        GENERATE(std::vector<std::int64_t>{}, std::vector<std::int64_t>{-1, 1LL << 60, 1LL << 60},
                 std::vector<std::int64_t>{-1, -1});
    CHECK(thrown([&] { StubSession session(manifest); })->kind() == ErrorKind::model);
}
