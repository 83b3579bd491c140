// A stand-in for TensorRT's library, by TensorRT's own headers: it computes a sum of products on the host. Its "engine"
// is a text: `SMALLEST PREFERRED LARGEST`, then a line for each tensor: `in|out NAME TYPE SIZE...`, without the batch.
//
// The call that STAND_IN_FAILS names fails, as TensorRT fails: a null pointer or false, and the reason in the log.
// `stubs.hpp`, made by the test from NvInferImpl.h, has the functions that nobody calls.
#include <NvInfer.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "stubs.hpp"

namespace {

using namespace nvinfer1;

int objects = 0;
ILogger* logger = nullptr;

struct Report {
    ~Report() {
        const char* path = std::getenv("STAND_IN_REPORT");
        if (std::FILE* file = std::fopen(path == nullptr ? "/dev/null" : path, "a")) {
            std::fprintf(file, "nvinfer: objects %d\n", objects);
            std::fclose(file);
        }
    }
} report;

bool fails(const char* call) {
    const char* named = std::getenv("STAND_IN_FAILS");
    if (named == nullptr || std::string(named) != call) return false;
    logger->log(ILogger::Severity::kINFO, "not a reason");
    logger->log(ILogger::Severity::kERROR, (std::string("the stand-in refuses\n") + call).c_str());
    return true;
}

struct Tensor {
    bool is_input;
    DataType type;
    Dims shape;
};

struct Model {
    std::int64_t profile[3];
    std::vector<std::string> names;
    std::map<std::string, Tensor> tensors;
};

struct Counted {
    Counted() { ++objects; }
    ~Counted() { --objects; }
};

struct Context final : IExecutionContext, apiv::ContextStub, Counted {
    explicit Context(const Model& model) : model_(model) { mImpl = this; }

    bool setInputShape(char const* name, Dims const& shape) noexcept override {
        if (fails("setInputShape") || model_.tensors.at(name).shape.nbDims != shape.nbDims) return false;
        batch_ = shape.d[0];
        return batch_ >= model_.profile[0] && batch_ <= model_.profile[2];
    }
    bool setTensorAddress(char const* name, void* address) noexcept override {
        if (fails("setTensorAddress") || reinterpret_cast<std::uintptr_t>(address) % 256 != 0) return false;
        addresses_[name] = address;
        return true;
    }
    bool enqueueV3(cudaStream_t stream) noexcept override {
        if (fails("enqueueV3") || stream == nullptr || addresses_.size() != model_.tensors.size()) return false;
        for (const std::string& name : model_.names)
            if (model_.tensors.at(name).is_input) source_ = static_cast<const float*>(addresses_[name]);
        for (const std::string& name : model_.names)
            if (!model_.tensors.at(name).is_input) compute(name);
        return true;
    }

  private:
    static std::int64_t count(const Dims& shape) {
        std::int64_t all = 1;
        for (int axis = 1; axis < shape.nbDims; ++axis) all *= shape.d[axis];
        return all;
    }
    /// out[row, c] = the sum over i of in[row, i] * ((7 i + 13 c) mod 11 - 5) / 1000.
    void compute(const std::string& name) {
        std::int64_t inputs = 0;
        for (const auto& [other, tensor] : model_.tensors)
            if (tensor.is_input) inputs = count(tensor.shape);
        const std::int64_t outputs = count(model_.tensors.at(name).shape);
        auto* target = static_cast<float*>(addresses_[name]);
        for (std::int64_t row = 0; row < batch_; ++row) {
            for (std::int64_t column = 0; column < outputs; ++column) {
                double sum = 0;
                for (std::int64_t i = 0; i < inputs; ++i)
                    sum += static_cast<double>(source_[row * inputs + i]) *
                           static_cast<double>((7 * i + 13 * column) % 11 - 5) / 1000;
                target[row * outputs + column] = static_cast<float>(sum);
            }
        }
    }

    const Model& model_;
    std::int64_t batch_ = 0;
    const float* source_ = nullptr;
    std::map<std::string, void*> addresses_;
};

struct Engine final : ICudaEngine, apiv::EngineStub, Counted {
    explicit Engine(Model model) : model_(std::move(model)) { mImpl = this; }

    std::int32_t getNbIOTensors() const noexcept override { return static_cast<std::int32_t>(model_.names.size()); }
    char const* getIOTensorName(std::int32_t index) const noexcept override {
        return fails("getIOTensorName") ? nullptr : model_.names.at(static_cast<std::size_t>(index)).c_str();
    }
    TensorIOMode getTensorIOMode(char const* name) const noexcept override {
        return model_.tensors.at(name).is_input ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    }
    DataType getTensorDataType(char const* name) const noexcept override { return model_.tensors.at(name).type; }
    Dims getTensorShape(char const* name) const noexcept override { return model_.tensors.at(name).shape; }
    Dims getProfileShape(char const* name, std::int32_t, OptProfileSelector which) const noexcept override {
        if (model_.tensors.count(name) == 0) return {-1, {}};  // as TensorRT
        Dims shape = model_.tensors.at(name).shape;
        shape.d[0] = model_.profile[static_cast<int>(which)];
        return shape;
    }
    IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy) noexcept override {
        return fails("createExecutionContext") ? nullptr : new Context(model_);
    }

  private:
    Model model_;
};

struct Runtime final : IRuntime, apiv::RuntimeStub, Counted {
    Runtime() { mImpl = this; }
    void setEngineHostCodeAllowed(bool allowed) noexcept override { host_code_ = allowed; }
    ICudaEngine* deserializeCudaEngine(void const* content, std::size_t size) noexcept override {
        std::istringstream lines(std::string(static_cast<const char*>(content), size));
        const bool needs_host_code = std::getenv("STAND_IN_HOST_CODE") != nullptr;
        if (fails("deserializeCudaEngine") || needs_host_code != host_code_) return nullptr;
        Model model;
        lines >> model.profile[0] >> model.profile[1] >> model.profile[2];
        std::string line;
        while (std::getline(lines >> std::ws, line)) {
            std::istringstream words(line);
            std::string mode, name, type;
            words >> mode >> name >> type;
            Tensor tensor{mode == "in", type == "float16" ? DataType::kHALF : DataType::kFLOAT, {}};
            tensor.shape.nbDims = 1;
            tensor.shape.d[0] = -1;
            for (std::int64_t size_of_axis = 0; words >> size_of_axis;)
                tensor.shape.d[tensor.shape.nbDims++] = size_of_axis;
            model.names.push_back(name);
            model.tensors.emplace(name, tensor);
        }
        return new Engine(std::move(model));
    }

  private:
    bool host_code_ = false;
};

}  // namespace

extern "C" {
void* createInferRuntime_INTERNAL(void* given, std::int32_t version) noexcept {
    logger = static_cast<ILogger*>(given);
    return version != NV_TENSORRT_VERSION || fails("createInferRuntime") ? nullptr
                                                                         : static_cast<IRuntime*>(new Runtime);
}
std::int32_t getInferLibMajorVersion() noexcept {
    const char* other = std::getenv("STAND_IN_MAJOR");
    return other == nullptr ? NV_TENSORRT_MAJOR : std::atoi(other);
}
std::int32_t getInferLibMinorVersion() noexcept { return NV_TENSORRT_MINOR; }
std::int32_t getInferLibPatchVersion() noexcept { return NV_TENSORRT_PATCH; }
std::int32_t getInferLibBuildVersion() noexcept { return NV_TENSORRT_BUILD; }
}
