#pragma once

#include <cstring>
#include <functional>
#include <limits>
#include <utility>

#include "itae/session.hpp"

/// A session without a library behind it. A picture is 12 bytes; its embedding is the sum of them and the first of
/// them, and NaN if all of them are 255.
class StubSession final : public itae::Session {
  public:
    explicit StubSession(itae::Manifest manifest = stub_manifest()) : Session(std::move(manifest), "stub") {}

    static itae::Manifest stub_manifest() {
        itae::Manifest manifest;
        manifest.model_path = "stub.onnx";
        manifest.model_file.name = "stub.onnx";
        manifest.builder = "onnx";
        manifest.width = 2;
        manifest.pooling = "cls";
        manifest.input = {"images", "uint8", {itae::dynamic_size, 2, 2, 3}};
        manifest.outputs = {{"embedding", "float32", {itae::dynamic_size, 2}}};
        manifest.preprocessing.fit = "squash";
        manifest.preprocessing.height = manifest.preprocessing.width = 2;
        manifest.preprocessing.uint8_input = true;
        return manifest;
    }

    static std::vector<float> embedding_of(const std::uint8_t* picture) {
        int sum = 0;
        for (int byte = 0; byte < 12; ++byte) sum += picture[byte];
        if (sum == 12 * 255) return {std::numeric_limits<float>::quiet_NaN(), 0};
        return {static_cast<float>(sum), static_cast<float>(picture[0])};
    }

    /// Called with the size of each batch before it is run.
    std::function<void(std::int64_t)> on_run = [](std::int64_t) {};
    /// The output's type and rest of the shape, to be wrong.
    std::string dtype = "float32";
    std::int64_t columns = 2;

  protected:
    std::vector<itae::Array> compute(const void* input, std::int64_t batch,
                                     const std::vector<std::string>& wanted) const override {
        on_run(batch);
        std::vector<itae::Array> arrays;
        for (std::size_t number = 0; number < wanted.size(); ++number) {
            itae::Array array;
            array.dtype = dtype;
            array.shape = {batch, columns};
            array.data.resize(static_cast<std::size_t>(batch * columns) * 4);
            for (std::int64_t row = 0; row < batch && columns == 2; ++row) {
                const std::vector<float> vector = embedding_of(static_cast<const std::uint8_t*>(input) + 12 * row);
                std::memcpy(array.data.data() + 8 * row, vector.data(), 8);
            }
            arrays.push_back(std::move(array));
        }
        return arrays;
    }
};
