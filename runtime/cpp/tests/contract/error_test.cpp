#include "itae/error.hpp"

#include <catch2/catch.hpp>

using itae::Error;
using itae::ErrorKind;

TEST_CASE("an error keeps its kind and is one line") {
    const Error error(ErrorKind::image, "two\nlines of a\tname ");
    CHECK(error.kind() == ErrorKind::image);
    CHECK(error.what() == std::string("two lines of a name"));
}

TEST_CASE("characters that steer a terminal are shown as Python shows them") {
    CHECK(itae::plain("a\x1b[31mb") == "a\\x1b[31mb");
    CHECK(itae::plain("a\xE2\x80\xAE"
                      "b") == "a\\u202eb");
    CHECK(itae::plain("\xF3\xA0\x80\x81") == "\\U000e0001");
    CHECK(itae::plain("caf\xC3\xA9 \xF0\x9F\x90\x88") == "caf\xC3\xA9 \xF0\x9F\x90\x88");
    CHECK(itae::plain("a\xE2\x80\x8D"
                      "b") ==
          "a\xE2\x80\x8D"
          "b");  // a joiner
}

TEST_CASE("bytes that are not UTF-8 are shown as Python shows those of a file's name") {
    CHECK(itae::plain("a\xFF") == "a\\udcff");
    CHECK(itae::plain("\xE2\x80") == "\\udce2\\udc80");
    CHECK(itae::plain("\xC0\xAF") == "\\udcc0\\udcaf");             // overlong
    CHECK(itae::plain("\xED\xA0\x80") == "\\udced\\udca0\\udc80");  // half a surrogate pair
}
