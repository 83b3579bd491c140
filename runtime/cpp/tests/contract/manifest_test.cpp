#include "itae/manifest.hpp"

#include <catch2/catch.hpp>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "contract/json.hpp"
#include "contract/schema.hpp"
#include "temporary_folder.hpp"
#include "thrown.hpp"

using Catch::Contains;
using itae::Manifest;

namespace {

const std::string base = ITAE_ROOT "/tests/conformance/cases/base";

std::string refused(const std::string& model) {
    const auto error = thrown([&] { Manifest::read(model); });
    REQUIRE(error);
    CHECK(error->kind() == itae::ErrorKind::model);
    return error->what();
}

itae::ByteView view(const std::string& text) {
    return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

}  // namespace

TEST_CASE("a manifest is read into fields") {
    const Manifest manifest = Manifest::read(base + "/m.onnx");
    CHECK(manifest.model_path == base + "/m.onnx");
    CHECK(manifest.manifest_path == base + "/m.onnx.json");
    CHECK(manifest.image_size == std::array<std::int64_t, 2>{2, 4});
    CHECK_FALSE(manifest.batch);
    CHECK(manifest.method == "itae");
    CHECK(manifest.layers == std::vector<std::int64_t>{1, 3});
    CHECK(manifest.embedding_width() == 6);
    CHECK(manifest.patches() == 2);
    CHECK(manifest.has_random_weights);
    CHECK(manifest.input.name == "images");
    CHECK(manifest.input.shape == std::vector<std::int64_t>{itae::dynamic_size, 2, 4, 3});
    CHECK(manifest.outputs.size() == 4);
    CHECK(manifest.has_output("artifact_mask"));
    CHECK_FALSE(manifest.has_output("other"));
    CHECK(manifest.preprocessing.fit == "crop");
    CHECK(manifest.preprocessing.resize_cover == std::array<std::int64_t, 2>{4, 8});
    CHECK(manifest.preprocessing.height == 2);
    CHECK(manifest.preprocessing.width == 4);
    CHECK(manifest.preprocessing.mean[2] == 0.406);
    CHECK(manifest.preprocessing.stddev[0] == 0.229);
    CHECK(manifest.preprocessing.scale == 1.0 / 255);
    CHECK(manifest.preprocessing.uint8_input);
    CHECK(manifest.limits.max_abs == 1e-4);
    CHECK_FALSE(manifest.limits.min_cosine);
    CHECK(manifest.versions.at("numpy") == "2.0");
    CHECK(manifest.sha256.size() == 64);
    REQUIRE(manifest.external_data);
    CHECK(manifest.path_of(*manifest.external_data) == base + "/m.onnx.data");
    CHECK(manifest.read_model().size() == 16);
}

TEST_CASE("what is no model is refused with what makes one") {
    const TemporaryFolder folder;
    CHECK_THAT(refused(folder.at("none.onnx")),
               Contains("none.onnx: no such model file; make one with `python -m exporter"));
    CHECK(refused(folder.path()) == folder.path().string() + " is a folder, expected a model: X.onnx or X.engine");
    CHECK_THAT(refused(std::string("a\0.onnx", 7)), Contains("no such model file"));
    CHECK_THAT(refused(folder.at(std::string(300, 'x'))), Contains("File name too long"));
    folder.write("m.onnx", "");
    std::filesystem::create_directory(folder.at("m.onnx.json"));
    CHECK_THAT(refused(folder.at("m.onnx")), Contains("m.onnx.json: Is a directory"));
}

TEST_CASE("an interrupted export is named as such") {
    const TemporaryFolder folder;
    for (const std::string& name : {std::string("m.onnx"), std::string(80, 'x') + ".onnx"}) {
        const bool is_short = name.size() < 60;
        // The hash is that of the long name and `.json`, by `printf x....onnx.json | sha256sum`.
        const std::string hidden =
            is_short ? ".m.onnx.json.exchange" : "." + std::string("2a8837dea0ea3b5e2b964effc1390dbc") + ".exchange";
        std::filesystem::create_directory(folder.at(hidden));
        folder.write(hidden + "/plan.json", "{}");
        CHECK_THAT(refused(folder.at(name)), Contains("an export was interrupted"));
        folder.write(name, "");
        CHECK_THAT(refused(folder.at(name)), Contains("an export was interrupted"));
    }
}

TEST_CASE("a huge manifest is refused before it is read") {
    const TemporaryFolder folder;
    const std::string model = folder.write("m.onnx", "");
    folder.write("m.onnx.json", "");
    std::filesystem::resize_file(folder.at("m.onnx.json"), std::uintmax_t{1} << 40);  // sparse
    CHECK_THAT(refused(model), Contains("is larger than 4194304 bytes: not a manifest"));
}

TEST_CASE("an own hash of format 1 is not looked at, the manifest is refused by its version") {
    const TemporaryFolder folder;
    const std::string model = folder.write("m.onnx", "");
    folder.write("m.onnx.json", "{\"format_version\": 1}");
    CHECK_THAT(refused(model), Contains("has manifest format 1, which Python alone reads: export m.onnx again"));
}

TEST_CASE("every keyword and pattern of the schema is known") {
    const auto schema = nlohmann::ordered_json::parse(itae::manifest_schema);
    // Each part is held to some value, so that its keywords are looked at.
    const std::function<void(const nlohmann::ordered_json&)> walk = [&](const nlohmann::ordered_json& part) {
        if (part.is_object() && (part.contains("type") || part.contains("anyOf") || part.contains("$ref"))) {
            nlohmann::ordered_json alone = part;
            alone["$defs"] = schema.at("$defs");
            for (const char* value : {R"("a")", "1", "null", "[1, 2, 3]", "{}"}) {
                CHECK_NOTHROW(itae::find_fault(nlohmann::json::parse(value), alone));
            }
        }
        for (const auto& inner : part) {
            if (inner.is_structured()) walk(inner);
        }
    };
    walk(schema);
    const nlohmann::ordered_json unknown{{"type", "string"}, {"multipleOf", 2}};
    CHECK_THROWS_AS(itae::find_fault("a", unknown), std::logic_error);
    const nlohmann::ordered_json pattern{{"pattern", "^x$"}};
    CHECK_THROWS_AS(itae::find_fault("a", pattern), std::logic_error);
}

TEST_CASE("JSON has as many levels as Python takes, and no more") {
    const auto levels = [](std::size_t count) { return std::string(count, '[') + std::string(count, ']'); };
    CHECK_NOTHROW(itae::parse_json(view(levels(itae::max_json_depth))));
    CHECK_THROWS_AS(itae::parse_json(view(levels(itae::max_json_depth + 1))), itae::NotJson);
    CHECK_THROWS_AS(itae::parse_json(view(std::string(1'000'000, '['))), itae::NotJson);
    CHECK_THROWS_AS(itae::parse_json(view(R"({"a": {"b": 1, "b": 1}})")), itae::NotJson);
    CHECK_NOTHROW(itae::parse_json(view(R"({"a": {"b": 1}, "b": 1, "c": [{"b": 1}, {"b": 2}]})")));
}
