#include <algorithm>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "itae.h"
#include "itae.hpp"

struct itae_model {
    explicit itae_model(itae::Model loaded) : model(std::move(loaded)) {}
    itae::Model model;
};

namespace {

/// Why this thread's last call failed.
std::string& last_error() {
    thread_local std::string message;
    return message;
}

itae_status failed(itae_status status, const char* message) noexcept {
    try {
        last_error() = message;
    } catch (...) {
        last_error().clear();
    }
    return status;
}

itae_status status_of(itae::ErrorKind kind) noexcept {
    switch (kind) {
        case itae::ErrorKind::usage:
            return ITAE_ERROR_USAGE;
        case itae::ErrorKind::model:
            return ITAE_ERROR_MODEL;
        case itae::ErrorKind::image:
            return ITAE_ERROR_IMAGE;
        case itae::ErrorKind::backend:
            return ITAE_ERROR_BACKEND;
        case itae::ErrorKind::io:
            return ITAE_ERROR_IO;
        case itae::ErrorKind::mismatch:
            return ITAE_ERROR_MISMATCH;
    }
    return ITAE_ERROR_INTERNAL;
}

/// Calls something, and gives a status for whatever it throws.
template <typename Call>
itae_status guarded(const Call& call) noexcept {
    last_error().clear();
    try {
        call();
        return ITAE_OK;
    } catch (const itae::Error& error) {
        return failed(status_of(error.kind()), error.what());
    } catch (const std::bad_alloc&) {
        return failed(ITAE_ERROR_MEMORY, "memory ran out");
    } catch (const std::exception& error) {
        return failed(ITAE_ERROR_INTERNAL, error.what());
    } catch (...) {
        return failed(ITAE_ERROR_INTERNAL, "an unknown exception");
    }
}

void require(bool holds, const char* message) {
    if (!holds) throw itae::Error(itae::ErrorKind::usage, message);
}

std::string text(const char* value, const char* name) {
    require(value != nullptr, (std::string(name) + " is NULL").c_str());
    return value;
}

itae::LoadOptions load_options(const itae_options* given) {
    itae::LoadOptions options;
    if (given == nullptr) return options;
    require(given->struct_bytes == sizeof(itae_options),
            "options.struct_bytes is not the size that the library knows: fill them with itae_default_options, and "
            "compile the program with the library's own header");
    options.backend = text(given->backend, "options.backend");
    options.device = text(given->device, "options.device");
    options.ort_library = text(given->ort_library, "options.ort_library");
    options.batch = given->batch;
    options.threads = given->threads;
    options.workers = given->workers;
    return options;
}

void copy_out(const std::vector<float>& vectors, float* out) { std::copy(vectors.begin(), vectors.end(), out); }

}  // namespace

const char* itae_version(void) { return itae::version(); }

int itae_abi_version(void) { return ITAE_ABI_VERSION; }

const char* itae_last_error(void) { return last_error().c_str(); }

itae_status itae_default_options(itae_options* options) {
    return guarded([&] {
        require(options != nullptr, "options is NULL");
        *options = {sizeof(itae_options), "auto", "auto", "", 0, 0, 0};
    });
}

itae_status itae_load(const char* path, const itae_options* options, itae_model** model) {
    return guarded([&] {
        require(model != nullptr, "model is NULL");
        *model = nullptr;
        *model = std::make_unique<itae_model>(itae::Model::load(text(path, "path"), load_options(options))).release();
    });
}

void itae_free(itae_model* model) { delete model; }

int64_t itae_width(const itae_model* model) { return model == nullptr ? 0 : model->model.width(); }

const char* itae_manifest_sha256(const itae_model* model) {
    return model == nullptr ? "" : model->model.manifest().sha256.c_str();
}

itae_status itae_embed_files(const itae_model* model, const char* const* paths, size_t count, float* vectors) {
    return guarded([&] {
        require(model != nullptr, "model is NULL");
        require(count == 0 || (paths != nullptr && vectors != nullptr), "paths or vectors is NULL");
        std::vector<std::string> named;
        for (std::size_t index = 0; index < count; ++index) named.push_back(text(paths[index], "a path"));
        if (count > 0) copy_out(model->model.embed(named), vectors);
    });
}

itae_status itae_embed_contents(const itae_model* model, const uint8_t* const* contents, const size_t* sizes,
                                size_t count, float* vectors) {
    return guarded([&] {
        require(model != nullptr, "model is NULL");
        require(count == 0 || (contents != nullptr && sizes != nullptr && vectors != nullptr),
                "contents, sizes or vectors is NULL");
        std::vector<itae::ByteView> views;
        for (std::size_t index = 0; index < count; ++index) {
            require(contents[index] != nullptr || sizes[index] == 0, "a content is NULL");
            views.emplace_back(contents[index], sizes[index]);
        }
        if (count > 0) copy_out(model->model.embed(views), vectors);
    });
}

itae_status itae_embed_pixels(const itae_model* model, const uint8_t* rgb, int64_t height, int64_t width,
                              float* vector) {
    return guarded([&] {
        require(model != nullptr && rgb != nullptr && vector != nullptr, "model, rgb or vector is NULL");
        require(height > 0 && width > 0 && height <= itae::max_pixels / width,
                "height x width must be from 1 to 178956970 pixels");
        itae::Image image{height, width, {rgb, rgb + 3 * height * width}};
        copy_out(model->model.embed(std::vector<itae::Image>{std::move(image)}), vector);
    });
}

itae_status itae_verify(const itae_model* model, itae_verification* found) {
    return guarded([&] {
        require(model != nullptr, "model is NULL");
        require(found == nullptr || found->struct_bytes == sizeof(itae_verification),
                "found.struct_bytes is not sizeof(itae_verification) of the library's own header");
        if (found != nullptr) *found = {sizeof(itae_verification), 0, 0, 0, 0, 0, 0, 0, 0};
        const itae::Verification verified = model->model.verify();
        const itae::Parity& parity = verified.parity;
        if (found != nullptr) {
            *found = {sizeof(itae_verification),
                      verified.samples,
                      static_cast<int64_t>(parity.left_out.size()),
                      parity.max_abs,
                      parity.min_cosine,
                      parity.norm_relative,
                      parity.flags_checked ? parity.flags_differing : -1,
                      verified.batches.rows,
                      verified.batches.distance};
        }
        if (verified.passed()) return;
        std::string reasons;
        for (const std::string& reason : verified.failures) reasons += (reasons.empty() ? "" : "; ") + reason;
        throw itae::Error(itae::ErrorKind::mismatch, model->model.manifest().model_path +
                                                         " does not give the results of its golden sample: " + reasons);
    });
}
