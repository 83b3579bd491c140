// itae-decode, for tests alone: decodes and preprocesses pictures as others ask for it, many in one process.
//
// stdin: for each picture 4 bytes of its size (little-endian) and its content. The arguments say the preprocessing:
// FIT FILTER HEIGHT WIDTH [COVER_HEIGHT COVER_WIDTH], or nothing to decode alone.
// stdout: for each picture a line, `decoded HEIGHT WIDTH SHA256` and, if it was preprocessed, the SHA-256 of the pixels
// and of the float32 input; or `refused REASON`.

#include <openssl/evp.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "itae/error.hpp"
#include "itae/image.hpp"
#include "itae/preprocess.hpp"

namespace {

bool read_all(std::vector<std::uint8_t>& bytes) {
    return bytes.empty() || std::fread(bytes.data(), 1, bytes.size(), stdin) == bytes.size();
}

std::string hash(const void* data, std::size_t size) {
    std::array<unsigned char, 32> digest{};
    EVP_Digest(data, size, digest.data(), nullptr, EVP_sha256(), nullptr);
    std::string text;
    for (const unsigned char byte : digest) {
        for (const int digit : {byte >> 4, byte & 15}) {
            text += "0123456789abcdef"[digit];
        }
    }
    return text;
}

void print_one(const std::vector<std::uint8_t>& content, const itae::Preprocessing& how, bool preprocesses) {
    try {
        const itae::Image image = itae::decode(content, "");
        std::string line = "decoded " + std::to_string(image.height) + " " + std::to_string(image.width) + " " +
                           hash(image.rgb.data(), image.rgb.size());
        if (preprocesses) {
            const auto pixels = itae::resize_and_fit(image, how);
            std::vector<float> input(pixels.size());
            itae::to_input(pixels, how, input.data());
            line += " " + hash(pixels.data(), pixels.size()) + " " + hash(input.data(), input.size() * sizeof(float));
        }
        std::cout << line << "\n";
    } catch (const itae::Error& error) {
        std::cout << "refused " << error.what() << "\n";
    }
    std::cout.flush();
}

}  // namespace

int main(int count, char** arguments) {
    itae::Preprocessing how;
    how.scale = 1.0 / 255;
    how.mean = {0.485, 0.456, 0.406};
    how.stddev = {0.229, 0.224, 0.225};
    if (count >= 5) {
        how.fit = arguments[1];
        how.resize_filter = arguments[2];
        how.height = std::stoll(arguments[3]);
        how.width = std::stoll(arguments[4]);
    }
    if (count >= 7) {
        how.resize_cover = {{std::stoll(arguments[5]), std::stoll(arguments[6])}};
    }
    std::vector<std::uint8_t> size(4);
    while (read_all(size)) {
        std::uint32_t length = 0;
        std::memcpy(&length, size.data(), size.size());
        std::vector<std::uint8_t> content(length);
        if (!read_all(content)) {
            return 1;
        }
        print_one(content, how, count >= 5);
    }
    return 0;
}
