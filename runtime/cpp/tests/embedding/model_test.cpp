#include "itae/model.hpp"

#include <atomic>
#include <catch2/catch.hpp>
#include <memory>
#include <thread>

#include "itae/error.hpp"
#include "stub_session.hpp"
#include "temporary_folder.hpp"
#include "thrown.hpp"

using itae::Image;

namespace {

Image flat(std::uint8_t value) { return {2, 2, std::vector<std::uint8_t>(12, value)}; }

}  // namespace

TEST_CASE("a model embeds decoded pictures, one or several") {
    const itae::Model model(std::make_unique<StubSession>());
    CHECK(model.width() == 2);
    CHECK(model.embed(std::vector<Image>{flat(3)}) == std::vector<float>{36, 3});
    CHECK(model.embed(std::vector<Image>{flat(3), flat(4), flat(5)}) == std::vector<float>{36, 3, 48, 4, 60, 5});
    CHECK(model.embed(std::vector<Image>{}).empty());
    const std::vector<std::uint8_t> inputs(12 * 20, 2);
    CHECK(model.embed_input(inputs.data(), 20).size() == 40);
}

TEST_CASE("an error names the picture") {
    const itae::Model model(std::make_unique<StubSession>());
    const TemporaryFolder folder;
    const std::string missing = folder.at("missing.jpg");
    const auto one = thrown([&] { model.embed({missing}); });
    REQUIRE(one);
    CHECK(one->what() == missing + ": does not exist, or is a link to what does not");
    CHECK(one->kind() == itae::ErrorKind::image);
    const auto among = thrown([&] { model.embed(std::vector<std::string>{missing, folder.path().string()}); });
    CHECK(among->what() == missing + ": does not exist, or is a link to what does not");
    CHECK(thrown([&] { model.embed({folder.path().string()}); })->what() ==
          folder.path().string() + ": is a folder or a device, not a file");
    CHECK(thrown([&] {
              model.embed(std::vector<Image>{flat(1), {2, 2, {}}});
          })->what() == std::string("picture 1: is 2 x 2 pixels of 0 bytes: give height x width x 3 bytes"));
    const auto not_finite = thrown([&] { model.embed(std::vector<Image>{flat(1), flat(255)}); });
    CHECK(not_finite->kind() == itae::ErrorKind::mismatch);
}

TEST_CASE("eight threads use one model") {
    const itae::Model model(std::make_unique<StubSession>());
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int number = 0; number < 8; ++number) {
        threads.emplace_back([&, number] {
            const auto value = static_cast<std::uint8_t>(number);
            const std::vector<float> expected{12.0F * static_cast<float>(value), static_cast<float>(value)};
            for (int time = 0; time < 50; ++time) {
                if (model.embed(std::vector<Image>{flat(value)}) != expected) ++wrong;
                if (model.embed(std::vector<Image>{flat(value), flat(value)}).size() != 4) ++wrong;
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
}

TEST_CASE("a model without an embedding, and numbers that mean nothing, are refused") {
    itae::Manifest manifest = StubSession::stub_manifest();
    manifest.outputs.front().name = "patch_tokens";
    CHECK(thrown([&] { itae::Model(std::make_unique<StubSession>(manifest)); })->kind() == itae::ErrorKind::usage);
    itae::LoadOptions options;
    options.batch = -3;
    CHECK(thrown([&] { itae::Model(std::make_unique<StubSession>(), options); })->kind() == itae::ErrorKind::usage);
}
