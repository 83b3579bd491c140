#include "itae/image.hpp"

#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "itae/error.hpp"
#include "thrown.hpp"

namespace {

std::string refusal(const std::string& content, const std::string& name = "a.jpg") {
    const itae::Bytes bytes(content.begin(), content.end());
    const auto error = thrown([&] { itae::decode(bytes, name); });
    REQUIRE(error);
    CHECK(error->kind() == itae::ErrorKind::image);
    return error->what();
}

const std::string only = ", which isn't read, only JPEG, PNG, WEBP";

}  // namespace

TEST_CASE("formats that are not read are refused by name") {
    using namespace std::string_literals;
    const std::vector<std::pair<std::string, std::string>> formats{
        {"BM"s + std::string(12, '\0') + "\x28\0\0\0"s, "BMP"},
        {"II*\0\x08\0\0\0"s, "TIFF"},
        {"MM\0*\0\0\0\x08"s, "TIFF"},
        {"GIF89a"s, "GIF"},
        {"\0\0\0\x18"s + "ftypheic\0\0\0\0mif1heic"s, "HEIC"},
        {"\0\0\0\x18"s + "ftypmif1\0\0\0\0mif1avif"s, "AVIF"},
        {"\0\0\0\x20"s + "ftypisom\0\0\2\0isomiso2avc1mp41"s, "a video"},
        {"\xff\x0a"s + std::string(50, '\0'), "JPEG XL"},
        {std::string(128, '\0') + "DICM", "DICOM"},
        {"\xef\xbb\xbf <?xml version=\"1.0\"?>\n<SVG/>"s, "SVG"},
        {"%PDF-1.7"s, "PDF"},
    };
    for (const auto& [content, name] : formats) {
        CHECK(refusal(content) == std::string("a.jpg: is ").append(name).append(only));
    }
}

TEST_CASE("what can't be a picture is refused with the reason") {
    CHECK(refusal("") == "a.jpg: is empty (0 bytes)");
    CHECK(refusal(std::string(100, '\0')) == "a.jpg: holds only zeros at its beginning: damaged");
    CHECK(refusal("BM is short for bitmap") == "a.jpg: is damaged, or none of JPEG, PNG, WEBP");
    CHECK(refusal("", "") == "is empty (0 bytes)");
}

TEST_CASE("a name stays on one line") { CHECK(refusal("", "a\nb.jpg").find('\n') == std::string::npos); }
