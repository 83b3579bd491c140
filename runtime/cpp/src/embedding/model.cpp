#include "itae/model.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <utility>

#include "embedding/machine.hpp"
#include "embedding/pictures.hpp"
#include "embedding/stream.hpp"
#include "itae/error.hpp"

namespace itae {

struct Model::State {
    std::unique_ptr<Session> session;
    std::int64_t batch;
    int workers;

    /// Embed `count` pictures, whose input `prepare` writes; `name` is what an error calls one.
    std::vector<float> embed(std::size_t count, const std::function<void(std::size_t, void*)>& prepare,
                             const std::function<std::string(std::size_t)>& name) const {
        const auto width = static_cast<std::size_t>(session->manifest().embedding_width());
        std::vector<float> vectors(count * width);
        std::size_t next = 0;
        std::size_t row = 0;
        const NextEntry entries = [&]() -> std::optional<Entry> {
            if (next == count) return std::nullopt;
            return Entry{"", std::to_string(next++), ""};
        };
        const Prepare by_number = [&](const Entry& entry, void* target) { prepare(std::stoul(entry.path), target); };
        StreamOptions options;
        options.batch = batch;
        options.workers = static_cast<int>(std::min<std::size_t>(static_cast<std::size_t>(workers), count));
        embed_stream(*session, entries, by_number, options, [&](const Row& one) {
            if (one.embedding == nullptr) {
                const bool by_model = one.error == not_finite;
                throw Error(by_model ? ErrorKind::mismatch : ErrorKind::image, name(row) + ": " + one.error);
            }
            std::memcpy(vectors.data() + row++ * width, one.embedding, width * sizeof(float));
        });
        return vectors;
    }

    /// Embed one picture without a thread of its own, as servers do.
    std::vector<float> embed_one(const std::function<void(void*)>& prepare, const std::string& name) const {
        Bytes input(session->input_bytes());
        try {
            prepare(input.data());
        } catch (const Error& error) {
            throw Error(error.kind(), name + ": " + error.what());
        }
        return vectors_of(input.data(), 1);
    }

    std::vector<float> vectors_of(const void* input, std::int64_t count) const {
        const std::vector<Array> outputs = session->run(input, count, {"embedding"});
        const auto* first = outputs.front().as<float>();
        return {first, first + outputs.front().data.size() / sizeof(float)};
    }
};

Model Model::load(const std::string& path, const LoadOptions& options) {
    if (options.workers < 0 || options.workers > max_threads) {
        throw Error(ErrorKind::usage, "workers " + std::to_string(options.workers) + ": must be from 1 to " +
                                          std::to_string(max_threads));
    }
    return Model(open_session(path, options), options);
}

Model::Model(std::unique_ptr<Session> session, const LoadOptions& options)
    : state_(std::make_unique<State>(State{std::move(session), 0, 1})) {
    const Manifest& manifest = state_->session->manifest();
    manifest.check_embedding();
    state_->batch = state_->session->chosen_batch(options.batch);
    state_->workers = options.workers > 0 ? options.workers : options.threads > 0 ? options.threads : usable_cores();
}

Model::~Model() = default;
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;

const Manifest& Model::manifest() const noexcept { return state_->session->manifest(); }
const Session& Model::session() const noexcept { return *state_->session; }
std::int64_t Model::width() const noexcept { return manifest().embedding_width(); }

std::vector<float> Model::embed(const std::vector<std::string>& paths) const {
    const Preprocessing& how = manifest().preprocessing;
    if (paths.size() == 1) return state_->embed_one([&](void* out) { prepare_file(paths[0], how, out); }, paths[0]);
    return state_->embed(
        paths.size(), [&](std::size_t number, void* out) { prepare_file(paths[number], how, out); },
        [&](std::size_t number) { return paths[number]; });
}

std::vector<float> Model::embed(const std::vector<ByteView>& contents) const {
    const Preprocessing& how = manifest().preprocessing;
    const auto name = [](std::size_t number) { return "picture " + std::to_string(number); };
    if (contents.size() == 1)
        return state_->embed_one([&](void* out) { prepare_content(contents[0], how, out); }, name(0));
    return state_->embed(
        contents.size(), [&](std::size_t number, void* out) { prepare_content(contents[number], how, out); }, name);
}

std::vector<float> Model::embed(const std::vector<Image>& images) const {
    const Preprocessing& how = manifest().preprocessing;
    const auto name = [](std::size_t number) { return "picture " + std::to_string(number); };
    if (images.size() == 1) return state_->embed_one([&](void* out) { prepare_image(images[0], how, out); }, name(0));
    return state_->embed(
        images.size(), [&](std::size_t number, void* out) { prepare_image(images[number], how, out); }, name);
}

std::vector<float> Model::embed_input(const void* input, std::int64_t count) const {
    std::vector<float> vectors;
    const auto* bytes = static_cast<const std::uint8_t*>(input);
    for (std::int64_t start = 0; start < count; start += state_->batch) {
        const std::size_t offset = static_cast<std::size_t>(start) * state_->session->input_bytes();
        const std::vector<float> found = state_->vectors_of(bytes + offset, std::min(state_->batch, count - start));
        vectors.insert(vectors.end(), found.begin(), found.end());
    }
    return vectors;
}

Verification Model::verify() const { return itae::verify(*state_->session, state_->batch); }

}  // namespace itae
