#include "backends/onnx_runtime_library.hpp"

#include <catch2/catch.hpp>
#include <filesystem>

#include "temporary_folder.hpp"
#include "thrown.hpp"

TEST_CASE("a library that is missing or another is refused with all the places") {
    const TemporaryFolder folder;
    const std::string missing = folder.at("libonnxruntime.so");
    const auto error = thrown([&] { itae::load_onnx_runtime(missing); });
    REQUIRE(error);
    CHECK(error->kind() == itae::ErrorKind::backend);
    const std::string message = error->what();
    if (message.find("is loaded already") != std::string::npos) return;  // a test before this one has loaded it
    for (const char* part :
         {"no such file", "--ort-library", "ITAE_ONNXRUNTIME", "beside the program", "LD_LIBRARY_PATH"})
        CHECK(message.find(part) != std::string::npos);
    folder.write("libonnxruntime.so", "not a library");
    CHECK(std::string(thrown([&] { itae::load_onnx_runtime(missing); })->what()).find("is not found") !=
          std::string::npos);
    const auto other = thrown([] { itae::load_onnx_runtime("/lib/x86_64-linux-gnu/libm.so.6"); });
    if (std::filesystem::exists("/lib/x86_64-linux-gnu/libm.so.6"))
        CHECK(std::string(other->what()).find("it has no OrtGetApiBase") != std::string::npos);
}
