// The cases of tests/conformance, which Python's tests run too: the same verdicts, and the same figures.
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "contract/npz.hpp"
#include "itae/golden.hpp"
#include "itae/manifest.hpp"
#include "temporary_folder.hpp"
#include "thrown.hpp"

namespace fs = std::filesystem;
using Json = nlohmann::json;

namespace {

const fs::path cases = fs::path(ITAE_ROOT) / "tests/conformance/cases";

/// A copy of the base with the case's files over it; the path of its model.
std::string laid_out(const Json& one, const fs::path& folder) {
    const auto options = fs::copy_options::recursive | fs::copy_options::overwrite_existing;
    fs::copy(cases / "base", folder, options);
    const fs::path own = cases / one.at("name").get<std::string>();
    if (fs::is_directory(own)) fs::copy(own, folder, options);
    for (const std::string name : one.at("remove")) fs::remove(folder / name);
    return (folder / "m.onnx").string();
}

double number(const Json& value) {
    if (value.is_number()) return value.get<double>();
    const auto text = value.get<std::string>();
    return text == "nan" ? std::nan("") : std::stod(text);
}

void check_same(double found, const Json& expected) {
    if (std::isnan(number(expected))) {
        CHECK(std::isnan(found));
    } else if (std::isinf(number(expected))) {
        CHECK(found == number(expected));
    } else {
        CHECK(found == Approx(number(expected)).epsilon(1e-12).margin(1e-15));
    }
}

void check_parity(const itae::Parity& found, const Json& expected) {
    check_same(found.max_abs, expected.at("max_abs"));
    check_same(found.min_cosine, expected.at("min_cosine"));
    check_same(found.norm_relative, expected.at("norm_relative"));
    check_same(found.max_relative, expected.at("max_relative"));
    CHECK(found.flags_checked == expected.at("flags_checked").get<bool>());
    CHECK(found.flags_differing == expected.at("flags_differing").get<std::int64_t>());
    CHECK(found.borderline == expected.at("borderline").get<std::vector<std::int64_t>>());
    CHECK(found.left_out == expected.at("left_out").get<std::vector<std::int64_t>>());
    auto failures = expected.at("failures").get<std::vector<std::string>>();
    auto ours = found.failures;  // in the order of the names here, in that of the outputs there
    std::sort(failures.begin(), failures.end());
    std::sort(ours.begin(), ours.end());
    CHECK(ours == failures);
}

void run(const Json& one, const std::string& model) {
    const std::string call = one.at("call");
    const itae::Manifest manifest = itae::Manifest::read(model);
    if (call == "files") {
        manifest.check_files();
        CHECK(manifest.read_model().size() == manifest.model_file.bytes);
    } else if (call == "golden" || call == "compare") {
        const itae::Golden golden = itae::Golden::read(manifest);
        if (call == "golden") return;
        const auto content = itae::read_file(fs::path(model).replace_filename("got.npz").string(), 1 << 20);
        const auto got =
            itae::read_npz(content, {"embedding", "patch_tokens", "artifact_mask", "artifact_norm", "logits", "a/map"},
                           1 << 20, "got.npz");
        check_parity(itae::compare(got, golden, manifest.limits), one.at("parity"));
    } else {
        CHECK(call == "manifest");
    }
}

}  // namespace

TEST_CASE("C++ gives the verdicts that Python gives") {
    std::ifstream file(cases / "contract.json");
    const Json listed = Json::parse(file);
    REQUIRE(listed.size() > 100);
    for (const Json& one : listed) {
        const TemporaryFolder folder;
        const std::string model = laid_out(one, folder.path());
        INFO(one.at("name").get<std::string>());
        const auto error = thrown([&] { run(one, model); });
        if (error) INFO(error->what());
        if (one.at("says").is_null()) {
            CHECK_FALSE(error);
            continue;
        }
        REQUIRE(error);
        CHECK(error->kind() == itae::ErrorKind::model);
        for (const std::string words : one.at("says")) CHECK_THAT(error->what(), Catch::Contains(words));
    }
}
