#include "sources.hpp"

#include <catch2/catch.hpp>
#include <filesystem>
#include <sstream>

#include "selection.hpp"
#include "temporary_folder.hpp"
#include "thrown.hpp"

using namespace itae::command;

namespace {

std::vector<std::string> paths_of(Source& source) {
    std::vector<std::string> paths;
    while (const auto entry = source.next()) paths.push_back(entry->path + (entry->error.empty() ? "" : " !"));
    return paths;
}

std::vector<std::string> paths_of(const std::string& list) { return paths_of(*open_list(list, "list", "/base")); }

std::optional<std::string> kind(const std::string& start) {
    return kind_by_content({reinterpret_cast<const std::uint8_t*>(start.data()), start.size()});
}

using Paths = std::vector<std::string>;

}  // namespace

TEST_CASE("a list is lines, or a NUL after each path") {
    CHECK(paths_of("a.jpg\n\n \t\r\nb.jpg\r\n c.jpg") == Paths{"a.jpg", "b.jpg", " c.jpg"});
    CHECK(paths_of(std::string("a\nb.jpg\0 \0c\r\0", 13)) == Paths{"a\nb.jpg", " ", "c"});
    CHECK(paths_of("\xef\xbb\xbf"
                   "a.jpg") == Paths{"a.jpg"});
    CHECK(paths_of("") == Paths{});
    CHECK(paths_of("sub/\n..\n\xff\nhttp://a/b.jpg\n").size() == 4);
    CHECK(open_list("a\nb\n\n", "list", "/base")->count() == 2);
    CHECK(thrown([] {
              open_list(
                  "\xff\xfe"
                  "a",
                  "list", "/base");
          })->kind() == itae::ErrorKind::usage);
}

TEST_CASE("the key of a path is a root and what lies below it") {
    const TemporaryFolder folder;
    const std::string base = std::filesystem::canonical(folder.path()).string();
    const auto key = [&](const std::string& text) {
        const Key found = key_of(text, base);
        return found.root + " " + found.path;
    };
    CHECK(key("./a//b.jpg") == base + " a/b.jpg");
    CHECK(key("x/../b.jpg") == base + " b.jpg");
    CHECK(key("/nowhere/./b.jpg") == "/nowhere b.jpg");
    CHECK(key("../b.jpg") == std::filesystem::path(base).parent_path().string() + " b.jpg");
    CHECK(key("file:/nowhere/b.jpg") == "/nowhere b.jpg");
    const std::string bad = GENERATE("..", "/", "a/..", "s3://b/c.jpg", "\xff.jpg");
    CHECK(thrown([&] { key(bad); })->kind() == itae::ErrorKind::image);
}

TEST_CASE("a folder gives its pictures, and counts what it passes over") {
    const TemporaryFolder folder;
    std::filesystem::create_directories(folder.path() / "sub/.git");
    for (const char* name : {"b.jpg", "a.PNG", "sub/c.webp", "sub/.git/d.jpg", "Thumbs.db", "e.mp4"})
        folder.write(name, "x");
    folder.write("f", "\xff\xd8\xff");
    folder.write("g", "");
    const auto source = open_folder(folder.path().string());
    CHECK(source->skipped() == Skipped{{"system or hidden", 2}, {"video", 1}, {"empty", 1}});
    CHECK(as_line(source->skipped()) == "4 files passed over: 2 system or hidden, 1 empty, 1 video");
    CHECK(paths_of(*source) == Paths{"a.PNG", "b.jpg", "f", "sub/c.webp"});
    std::istringstream input(folder.at("b.jpg"));
    Sources sources({folder.path().string(), folder.at("b.jpg"), "-"}, input);
    CHECK(sources.total() == 6);
    int count = 0;
    while (sources.next()) ++count;
    CHECK(count == 4);  // each once
}

TEST_CASE("files are known by their first bytes") {
    CHECK_FALSE(kind("\xff\xd8\xff\xe0"));
    CHECK_FALSE(kind("RIFF    WEBP"));
    CHECK_FALSE(kind(std::string("II*\0", 4)));
    CHECK(kind("") == "empty");
    CHECK(kind("text") == "unknown format");
    CHECK(kind("\n <!DOCTYPE HTML>") == "HTML page");
    CHECK(kind("PK\x03\x04") == "zip file");
    CHECK(kind(std::string("II*\0    CR\x02", 11)) == "camera's raw file");
}
