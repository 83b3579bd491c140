// A picture of any format, and what follows after it was decoded.
#include "hold.hpp"
#include "itae/preprocess.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    hold([&] {
        const itae::Image image = itae::decode({data, size}, "x");
        if (image.rgb.size() != static_cast<std::size_t>(3 * image.height * image.width)) std::abort();
        if (image.rgb.size() > 1 << 20) return;
        itae::Preprocessing how;
        how.height = how.width = 14;
        how.resize_order = "pillow13";
        how.scale = 1.0 / 255;
        how.mean = {0.5, 0.5, 0.5};
        how.stddev = {0.25, 0.25, 0.25};
        for (const char* fit : {"crop", "pad", "squash"}) {
            how.fit = fit;
            how.resize_cover.reset();
            if (how.fit == "crop") how.resize_cover = {16, 16};
            if (itae::resize_and_fit(image, how).size() != 14 * 14 * 3) std::abort();
        }
    });
    return 0;
}
