#include "hold.hpp"
#include "itae/golden.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    hold([&] { itae::read_npz({data, size}, {"input", "embedding", "flags", "flag_distance"}, 64 << 20, "x.npz"); });
    return 0;
}
