// The pictures of tests/conformance, which Python's tests decode too: the same pixels, the same refusals.
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "contract/sha256.hpp"
#include "itae/image.hpp"
#include "itae/preprocess.hpp"
#include "thrown.hpp"

namespace fs = std::filesystem;
using Json = nlohmann::json;

namespace {

const fs::path cases = fs::path(ITAE_ROOT) / "tests/conformance/cases";

itae::Preprocessing preprocessing(const Json& way) {
    itae::Preprocessing how;
    how.fit = way.at("fit");
    how.height = way.at("crop").at(0);
    how.width = way.at("crop").at(1);
    if (!way.at("resize_cover").is_null()) {
        how.resize_cover = way.at("resize_cover").get<std::array<std::int64_t, 2>>();
    }
    how.resize_filter = way.at("resize_filter");
    how.resize_order = "pillow13";
    how.scale = way.at("scale");
    how.mean = way.at("mean").get<std::array<double, 3>>();
    how.stddev = way.at("std").get<std::array<double, 3>>();
    return how;
}

void check_prepared(const itae::Image& image, const itae::Preprocessing& how, const Json& expected) {
    const itae::Bytes pixels = itae::resize_and_fit(image, how);
    CHECK(itae::sha256(pixels) == expected.at(0).get<std::string>());
    itae::Bytes input(how.input_bytes());
    itae::to_input(pixels, how, input.data());
    CHECK(itae::sha256(input) == expected.at(1).get<std::string>());
}

}  // namespace

TEST_CASE("pictures of the conformance cases are decoded to Python's pixels, or refused as there") {
    const Json listed = Json::parse(std::ifstream(cases / "images.json"));
    const Json& ways = listed.at("preprocessing");
    for (const Json& one : listed.at("pictures")) {
        const std::string name = one.at("file");
        INFO(name);
        const itae::Bytes content = itae::read_file((cases / "images" / name).string(), 1 << 20);
        if (one.contains("refused")) {
            const auto error = thrown([&] { itae::decode(content, name); });
            REQUIRE(error);
            CHECK(error->kind() == itae::ErrorKind::image);
            CHECK(std::string(error->what()).rfind(name + ": ", 0) == 0);
            continue;
        }
        const itae::Image image = itae::decode(content, name);
        CHECK(image.height == one.at("size").at(0).get<std::int64_t>());
        CHECK(image.width == one.at("size").at(1).get<std::int64_t>());
        CHECK(itae::sha256(image.rgb) == one.at("sha256").get<std::string>());
        for (std::size_t way = 0; way < ways.size(); ++way) {
            INFO(ways[way].dump());
            check_prepared(image, preprocessing(ways[way]), one.at("prepared").at(way));
        }
    }
}
