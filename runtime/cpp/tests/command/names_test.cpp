#include "names.hpp"

#include <catch2/catch.hpp>
#include <filesystem>

#include "temporary_folder.hpp"

using namespace itae::command;

TEST_CASE("UTF-8 is what Python takes for it") {
    for (const char* good : {"", "a", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf"})
        CHECK(is_utf8(good));
    for (const char* bad :
         {"\xff", "\x80", "\xc3", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82"})
        CHECK_FALSE(is_utf8(bad));
    CHECK(printable("a\xff\xe2\x82") == "a\\udcff\\udce2\\udc82");
}

TEST_CASE("names are sorted by code point") {
    std::vector<std::string> names{"\xf0\x9f\x98\x80", "b", "\xff", "\xef\xbf\xb0", "a/b", "a-b", "B"};
    sort_names(names);
    CHECK(names == std::vector<std::string>{"B", "a-b", "a/b", "b", "\xff", "\xef\xbf\xb0", "\xf0\x9f\x98\x80"});
}

TEST_CASE("paths are cut and brought to one form as by Python's os.path") {
    CHECK(suffix("a/B.JPG") == ".jpg");
    CHECK(suffix("a.b/c").empty());
    CHECK(suffix(".jpg").empty());
    CHECK(suffix("..jpg").empty());
    CHECK(suffix("a.") == ".");
    CHECK(normalized("") == ".");
    CHECK(normalized("a//b/./../c/") == "a/c");
    CHECK(normalized("../../a") == "../../a");
    CHECK(normalized("/../a") == "/a");
    CHECK(normalized("//a") == "//a");
    CHECK(normalized("///a") == "/a");
    CHECK(base_name("a/b/").empty());
}

TEST_CASE("a root is absolute, without links, whether it exists or not") {
    const TemporaryFolder folder;
    const std::string place = std::filesystem::canonical(folder.path()).string();
    std::filesystem::create_directory_symlink(place, folder.path() / "link");
    CHECK(resolved((folder.path() / "link").string()) == place);
    CHECK(resolved(place + "/link/../none/./x/") == std::filesystem::path(place).parent_path().string() + "/none/x");
    CHECK(resolved("/") == "/");
}
