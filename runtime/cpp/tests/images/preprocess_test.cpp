#include "itae/preprocess.hpp"

#include <catch2/catch.hpp>
#include <string>

#include "itae/error.hpp"
#include "thrown.hpp"

namespace {

itae::Preprocessing square(const std::string& fit) {
    itae::Preprocessing how;
    how.fit = fit;
    how.height = how.width = 28;
    how.resize_order = "pillow13";
    how.scale = 1.0 / 255;
    how.mean = {0.5, 0.25, 0};
    how.stddev = {0.5, 0.25, 1};
    if (fit == "crop") {
        how.resize_cover = {{32, 32}};
    }
    return how;
}

itae::Image plain(std::int64_t height, std::int64_t width) {
    return {height, width, itae::Bytes(static_cast<std::size_t>(3 * height * width), 255)};
}

}  // namespace

TEST_CASE("a picture of one colour keeps it at every size") {
    for (const auto& [height, width] : {std::pair{1, 1}, {1, 700}, {700, 1}, {28, 28}, {28, 99}, {99, 28}, {500, 3}}) {
        for (const std::string fit : {"crop", "squash"}) {
            CHECK(itae::resize_and_fit(plain(height, width), square(fit)) == itae::Bytes(28 * 28 * 3, 255));
        }
    }
}

TEST_CASE("a filter that is none of Pillow's two is refused") {
    itae::Preprocessing how = square("squash");
    how.resize_filter = "bilinear";
    CHECK(itae::resize_and_fit(plain(3, 4), how) == itae::Bytes(28 * 28 * 3, 255));
    how.resize_filter = "nearest";
    const auto error = thrown([&] { itae::resize_and_fit(plain(3, 4), how); });
    REQUIRE(error);
    CHECK(error->kind() == itae::ErrorKind::usage);
}

TEST_CASE("the border of a padded picture has the mean's colour") {
    const itae::Bytes pixels = itae::resize_and_fit(plain(10, 20), square("pad"));
    CHECK(itae::Bytes(pixels.begin(), pixels.begin() + 3) == itae::Bytes{128, 64, 0});
    CHECK(pixels[3 * (14 * 28 + 14)] == 255);
}

TEST_CASE("values are multiplied by the scale, less the mean, divided by the deviation") {
    itae::Preprocessing how = square("squash");
    how.height = how.width = 1;
    std::array<float, 3> input{};
    itae::to_input({255, 0, 51}, how, input.data());
    CHECK(input == std::array<float, 3>{1.0F, -1.0F, 0.2F});
    how.uint8_input = true;
    std::array<std::uint8_t, 3> same{};
    itae::to_input({255, 0, 51}, how, same.data());
    CHECK(same == std::array<std::uint8_t, 3>{255, 0, 51});
}

TEST_CASE("too narrow a strip is refused") {
    const auto error = thrown([] { itae::resize_and_fit(plain(1, 70'000), square("crop")); });
    REQUIRE(error);
    CHECK(error->kind() == itae::ErrorKind::image);
    CHECK(std::string(error->what()) == "has 70000 x 1 pixels, too narrow a strip to be resized to cover 32 x 32");
}

TEST_CASE("what is no picture and no preprocessing is refused") {
    itae::Image image = plain(2, 2);
    image.rgb.pop_back();
    const auto of_image = thrown([&] { itae::resize_and_fit(image, square("pad")); });
    const auto of_fit = thrown([] { itae::resize_and_fit(plain(2, 2), square("fill")); });
    const auto of_pixels = thrown([] { itae::to_input({1, 2, 3}, square("pad"), nullptr); });
    for (const auto& error : {of_image, of_fit, of_pixels}) {
        REQUIRE(error);
        CHECK(error->kind() == itae::ErrorKind::usage);
    }
}
