#include <cstdio>
#include <itae.hpp>

int main() try {
    const itae::Model model = itae::Model::load("itae.onnx");
    const std::vector<float> embedding = model.embed(std::vector<std::string>{"cat.jpg"});
    for (const float number : embedding) std::printf("%.9g\n", number);
} catch (const itae::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
