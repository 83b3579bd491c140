// A mutator for compilers without libFuzzer: `fuzz-npz -runs=10000 -seed=1 FOLDER...` changes the files of the folders
// at random and hands them to the fuzzer. An input depends on seed and number alone: `-first=N -runs=1` repeats one.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

namespace {

using Bytes = std::vector<std::uint8_t>;
using Random = std::mt19937_64;

std::uint64_t running = 0;

void say_which() { std::fprintf(stderr, "fuzz: it was input %llu\n", static_cast<unsigned long long>(running)); }

std::size_t below(Random& random, std::size_t count) { return static_cast<std::size_t>(random() % count); }

/// Overwrites some bytes with a number that is often a limit.
void put_number(Bytes& bytes, Random& random) {
    constexpr std::array<std::uint64_t, 14> numbers{
        0, 1, 7, 8, 127, 128, 255, 256, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, ~std::uint64_t{0}};
    const std::uint64_t number = numbers[below(random, numbers.size())];
    const std::size_t width = std::size_t{1} << below(random, 4);
    const bool is_big_endian = random() % 2 == 0;
    const std::size_t at = below(random, bytes.size());
    for (std::size_t index = 0; index < width && at + index < bytes.size(); ++index) {
        const std::size_t shift = 8 * (is_big_endian ? width - 1 - index : index);
        bytes[at + index] = static_cast<std::uint8_t>(number >> shift);
    }
}

void mutate(Bytes& bytes, const Bytes& other, Random& random) {
    if (bytes.empty()) bytes.push_back(0);
    const std::size_t at = below(random, bytes.size());
    const std::size_t count = 1 + below(random, std::min<std::size_t>(bytes.size() - at, 64));
    const auto first = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    const auto last = first + static_cast<std::ptrdiff_t>(count);
    switch (below(random, 9)) {
        case 0:
            bytes[at] = static_cast<std::uint8_t>(bytes[at] ^ 1u << below(random, 8));
            break;
        case 1:
            bytes[at] = static_cast<std::uint8_t>(random());
            break;
        case 2:
            put_number(bytes, random);
            break;
        case 3:
            bytes.erase(first, last);
            break;
        case 4: {
            const Bytes copy(first, last);
            bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(below(random, bytes.size())), copy.begin(),
                         copy.end());
            break;
        }
        case 5:
            std::generate(first, last, [&random] { return static_cast<std::uint8_t>(random()); });
            break;
        case 6:
            bytes.resize(at);
            break;
        case 7:  // a digit, where the text has one near
            for (auto byte = first; byte != bytes.end(); ++byte) {
                if (*byte >= '0' && *byte <= '9') {
                    *byte = static_cast<std::uint8_t>("0123456789-.e"[below(random, 13)]);
                    break;
                }
            }
            break;
        default:  // the end of another file
            if (!other.empty()) {
                const auto from = other.begin() + static_cast<std::ptrdiff_t>(std::min(at, other.size() - 1));
                bytes.erase(first, bytes.end());
                bytes.insert(bytes.end(), from, other.end());
            }
    }
}

std::uint64_t number_of(const std::string& argument) { return std::stoull(argument.substr(argument.find('=') + 1)); }

}  // namespace

int main(int count, char** arguments) {
    std::uint64_t runs = 1000, seed = 1, first = 0;
    std::vector<std::filesystem::path> files;
    for (int index = 1; index < count; ++index) {
        const std::string argument = arguments[index];
        if (argument.rfind("-runs=", 0) == 0) {
            runs = number_of(argument);
        } else if (argument.rfind("-seed=", 0) == 0) {
            seed = number_of(argument);
        } else if (argument.rfind("-first=", 0) == 0) {
            first = number_of(argument);
        } else {
            for (const auto& entry : std::filesystem::recursive_directory_iterator(argument)) {
                if (entry.is_regular_file()) files.push_back(entry.path());
            }
        }
    }
    if (files.empty()) {
        std::fprintf(stderr, "usage: %s [-runs=N] [-seed=S] [-first=N] FOLDER...\n", arguments[0]);
        return 2;
    }
    std::sort(files.begin(), files.end());
    std::vector<Bytes> corpus;
    for (const auto& path : files) {
        std::ifstream file(path, std::ios::binary);
        corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(say_which);
    for (running = first; running < first + runs; ++running) {
        Random random(seed * 1'000'003 + running);
        Bytes input = corpus[below(random, corpus.size())];
        const Bytes& other = corpus[below(random, corpus.size())];
        for (std::size_t changes = below(random, 6); changes > 0; --changes) mutate(input, other, random);
        LLVMFuzzerTestOneInput(input.data(), input.size());
    }
    std::printf("fuzz: %llu inputs made of %zu files\n", static_cast<unsigned long long>(runs), corpus.size());
    return 0;
}
