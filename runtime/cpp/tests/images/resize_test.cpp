#include "images/resize.hpp"

#include <catch2/catch.hpp>
#include <random>

using itae::images::Instructions;
using itae::images::Size;

TEST_CASE("AVX2 and plain loops give the same bits") {
    std::mt19937 random(0);
    const auto from = [&](std::int64_t least, std::int64_t most) {
        return least + static_cast<std::int64_t>(random() % static_cast<unsigned>(most - least + 1));
    };
    int differing = 0;
    for (int number = 0; number < 400; ++number) {
        const std::int64_t most = number % 2 == 0 ? 40 : 400;
        itae::Image image{from(1, most), from(1, most), {}};
        image.rgb.resize(static_cast<std::size_t>(3 * image.height * image.width));
        const bool has_extremes_alone = number % 3 == 0;  // where sums overflow first
        for (std::uint8_t& value : image.rgb)
            value = static_cast<std::uint8_t>(has_extremes_alone ? 255 * (random() % 2) : random());
        // One side may stay as it is: then there is one pass.
        const Size size{number % 5 == 0 ? image.height : from(1, 120), number % 7 == 0 ? image.width : from(1, 120)};
        const Size part{from(1, size.height), from(1, size.width)};
        const std::int64_t top = from(0, size.height - part.height), left = from(0, size.width - part.width);
        const auto kernel = number % 4 < 2 ? itae::images::Kernel::bicubic : itae::images::Kernel::bilinear;
        const auto best = itae::images::resized_part(image, size, top, left, part, kernel);
        const auto plain = itae::images::resized_part(image, size, top, left, part, kernel, Instructions::plain);
        REQUIRE(best.size() == static_cast<std::size_t>(3 * part.height * part.width));
        differing += best == plain ? 0 : 1;
    }
    CHECK(differing == 0);
}
