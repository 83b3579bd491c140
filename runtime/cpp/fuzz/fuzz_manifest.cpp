// A manifest as it is, and with its own hash made to fit, as a forger does it.
#include <algorithm>
#include <string>

#include "contract/manifest_text.hpp"
#include "contract/sha256.hpp"
#include "hold.hpp"

namespace {

/// The text with the own hash that fits; unchanged if there is no place for one.
itae::Bytes resealed(itae::Bytes text) {
    const std::string mark = "\"manifest_sha256\": \"";
    const auto found = std::search(text.begin(), text.end(), mark.begin(), mark.end());
    if (text.end() - found < static_cast<std::ptrdiff_t>(mark.size() + 64)) return text;
    const auto digits = found + static_cast<std::ptrdiff_t>(mark.size());
    std::fill_n(digits, 64, static_cast<std::uint8_t>('0'));
    const std::string hash = itae::sha256(text);
    std::copy(hash.begin(), hash.end(), digits);
    return text;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const itae::Bytes text(data, data + size);
    hold([&] { itae::parse_manifest(text, "m.onnx"); });
    hold([&] { itae::parse_manifest(resealed(text), "m.onnx"); });
    return 0;
}
