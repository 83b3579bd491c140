#include "options.hpp"

#include <catch2/catch.hpp>

#include "thrown.hpp"

using itae::command::Options;
using itae::command::Printed;

namespace {

Options parsed(std::vector<const char*> words) {
    words.insert(words.begin(), "itae-embed");
    return itae::command::parse(static_cast<int>(words.size()), words.data());
}

}  // namespace

TEST_CASE("a command line is model, images and options in any order") {
    const Options options =
        parsed({"--batch", "3", "m.onnx", "a.jpg", "-", "--out", "x.npy", "b/", "--threads", "2", "--json"});
    CHECK(options.model == "m.onnx");
    CHECK(options.images == std::vector<std::string>{"a.jpg", "-", "b/"});
    CHECK(options.out == "x.npy");
    CHECK(options.load.batch == 3);
    CHECK(options.load.threads == 2);
    CHECK(options.json);
    CHECK_FALSE(options.verify);
    CHECK(parsed({"m.onnx", "--verify"}).verify);
}

TEST_CASE("help and version are printed whatever else is there") {
    CHECK_THROWS_AS(parsed({"--help"}), Printed);
    CHECK_THROWS_AS(parsed({"--version"}), Printed);
    CHECK_THROWS_AS(parsed({"m.onnx", "--version"}), Printed);
}

TEST_CASE("a command line that means nothing is refused") {
    using Words = std::vector<const char*>;
    const Words words =
        GENERATE(Words{}, Words{"m"}, Words{"m", "a"}, Words{"m", "--out", "x.npy"}, Words{"m", "a", "--verify"},
                 Words{"m", "", "--out", "x.npy"}, Words{"m", "a", "--out", "x", "--threads", "0"},
                 Words{"m", "a", "--out", "x", "--batch", "-1"}, Words{"m", "--verify", "--assign", "c"});
    CHECK(thrown([&] { parsed(words); })->kind() == itae::ErrorKind::usage);
}
