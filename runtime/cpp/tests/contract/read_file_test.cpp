#include <sys/stat.h>

#include <catch2/catch.hpp>

#include "itae/bytes.hpp"
#include "temporary_folder.hpp"
#include "thrown.hpp"

using itae::ErrorKind;
using itae::read_file;

TEST_CASE("a file is read whole") {
    const TemporaryFolder folder;
    const auto path = folder.write("a", std::string("x\0y", 3));
    CHECK(read_file(path, 3) == itae::Bytes{'x', 0, 'y'});
    CHECK(read_file(folder.write("empty", ""), 0).empty());
}

TEST_CASE("what can't be read is refused in one line that names it") {
    const TemporaryFolder folder;
    const auto message = [&](const std::string& path, std::uint64_t limit = 1 << 20) {
        const auto error = thrown([&] { read_file(path, limit); });
        REQUIRE(error);
        CHECK(error->kind() == ErrorKind::io);
        return std::string(error->what());
    };
    CHECK(message(folder.at("none")) == "can't read " + folder.at("none") + ": No such file or directory");
    CHECK(message(folder.path()) == "can't read " + folder.path().string() + ": Is a directory");
    CHECK(message(folder.write("a", "12345"), 4) == "can't read " + folder.at("a") + ": it has 5 bytes, more than 4");
    CHECK(message(folder.at(std::string(300, 'x'))).find("File name too long") != std::string::npos);
    CHECK(message(std::string("a\0b", 3)).find("can't hold a NUL") != std::string::npos);
    REQUIRE(::mkfifo(folder.at("pipe").c_str(), 0600) == 0);
    CHECK(message(folder.at("pipe")).find("it is not a regular file") != std::string::npos);
}
