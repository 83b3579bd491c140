#include <atomic>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <thread>

#include "itae/golden.hpp"
#include "itae/model.hpp"

// Run by tests/cpp/test_embed.py, which gives it a model of each form.
TEST_CASE("eight threads run one session and get what one thread gets", "[.][threads]") {
    const char* path = std::getenv("ITAE_TEST_MODEL");
    REQUIRE(path != nullptr);
    itae::LoadOptions options;
    options.threads = 1;
    const itae::Model model = itae::Model::load(path, options);
    const itae::Golden golden = itae::Golden::read(model.manifest());
    const std::size_t bytes = model.session().input_bytes();
    const std::vector<float> expected[] = {model.embed_input(golden.input.data.data(), 1),
                                           model.embed_input(golden.input.data.data() + bytes, 1)};
    REQUIRE(expected[0] != expected[1]);
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (std::size_t number = 0; number < 8; ++number) {
        threads.emplace_back([&, number] {
            const std::size_t sample = number % 2;
            for (int time = 0; time < 20; ++time)
                if (model.embed_input(golden.input.data.data() + sample * bytes, 1) != expected[sample]) ++wrong;
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
}
