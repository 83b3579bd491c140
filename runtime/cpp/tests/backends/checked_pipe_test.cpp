#include "backends/checked_pipe.hpp"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <iterator>
#include <string>

#include "contract/sha256.hpp"
#include "temporary_folder.hpp"
#include "thrown.hpp"

namespace {

constexpr std::size_t big = (5 << 20) + 12345;  // more than a pipe holds, and no whole number of pieces

/// A file without two pieces that are alike, and its record.
struct Model {
    explicit Model(std::size_t size) {
        text.resize(size);
        for (std::size_t at = 0; at < size; ++at) text[at] = static_cast<char>(at / 1000 + at);
        manifest.model_path = folder.write("m.onnx", text);
        manifest.manifest_path = manifest.model_path + ".json";
        manifest.model_file = {"m.onnx", size,
                               itae::sha256({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()})};
    }
    itae::CheckedFile checked() const { return {manifest, manifest.model_path, manifest.model_file}; }
    /// Write a byte of the file, in place.
    void alter(std::size_t place) const {
        std::fstream file(manifest.model_path, std::ios::binary | std::ios::in | std::ios::out);
        file.seekp(static_cast<std::streamoff>(place));
        file.put(static_cast<char>(text[place] + 1));
    }

    TemporaryFolder folder;
    std::string text;
    itae::Manifest manifest;
};

std::string read_to_end(const std::string& path) {
    std::ifstream opened(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(opened), std::istreambuf_iterator<char>()};
}

void ignore(itae::ByteView /*piece*/) {}

}  // namespace

TEST_CASE("a library reads a checked file from a pipe, after what looks at it") {
    const Model model(GENERATE(std::size_t{0}, std::size_t{7}, big));
    itae::CheckedFile file = model.checked();
    std::string seen;
    itae::CheckedPipe pipe(file, [&](itae::ByteView piece) { seen.append(piece.data, piece.data + piece.size); });
    REQUIRE(!pipe.path().empty());
    const std::string got = read_to_end(pipe.path());
    CHECK(pipe.finish());
    CHECK((got == model.text));
    CHECK((seen == model.text));
}

TEST_CASE("a file that is altered after it was checked never reaches the library") {
    const Model model(big);
    itae::CheckedFile file = model.checked();
    constexpr std::size_t place = 3 << 20;
    model.alter(place);
    itae::CheckedPipe pipe(file, ignore);
    const std::string got = read_to_end(pipe.path());
    CHECK((got == model.text.substr(0, place)));
    const auto error = thrown([&] { pipe.finish(); });
    REQUIRE(error);
    CHECK(error->kind() == itae::ErrorKind::model);
    CHECK_THAT(error->what(), Catch::Contains("m.onnx has not the SHA-256 that m.onnx.json gives"));
}

TEST_CASE("what is refused when it is looked at never reaches the library") {
    const Model model(big);
    itae::CheckedFile file = model.checked();
    itae::CheckedPipe pipe(file, [](itae::ByteView) { throw itae::Error(itae::ErrorKind::model, "no"); });
    CHECK(read_to_end(pipe.path()).empty());
    CHECK(thrown([&] { pipe.finish(); })->what() == std::string("no"));
}

TEST_CASE("a library that reads nothing, or not all, is waited for no longer than it runs") {
    const Model model(big);
    itae::CheckedFile file = model.checked();
    itae::CheckedPipe pipe(file, ignore);
    if (GENERATE(false, true)) {
        std::ifstream opened(pipe.path(), std::ios::binary);
        opened.get();
    }
    CHECK_FALSE(pipe.finish());
}

TEST_CASE("a process that is forked meanwhile does not hold the pipe open") {
    const Model model(big);
    itae::CheckedFile file = model.checked();
    itae::CheckedPipe pipe(file, ignore);
    const pid_t child = ::fork();
    if (child == 0) {
        ::sleep(30);
        ::_exit(0);
    }
    REQUIRE(child > 0);
    const std::string got = read_to_end(pipe.path());
    CHECK(::waitpid(child, nullptr, WNOHANG) == 0);  // it still runs
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    CHECK((got == model.text));
    CHECK(pipe.finish());
}
