#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "itae/bytes.hpp"
#include "itae/export.hpp"
#include "itae/image.hpp"
#include "itae/manifest.hpp"
#include "itae/session.hpp"
#include "itae/verify.hpp"

namespace itae {

/// How to load a model.
struct LoadOptions : SessionOptions {
    /// How many pictures to run at a time; 0: 8, or an engine's preferred number.
    std::int64_t batch = 0;
    /// How many threads decode where several pictures are given at once; 0: `threads`, or the cores of this process.
    int workers = 0;
};

/// A loaded model that turns pictures into embeddings. Any number of threads may use one at the same time.
///
///     const itae::Model model = itae::Model::load("itae.onnx");
///     const std::vector<float> vectors = model.embed({"cat.jpg", "dog.png"});  // 2 rows of model.width()
///
/// Pictures are prepared as the manifest says: the same bits as in Python. The first picture that can't be used ends
/// a call. All functions throw `Error` and nothing else, but for std::bad_alloc.
class ITAE_EXPORT Model {
  public:
    /// Check the files of `path` and load it.
    /// @throws Error model, usage, backend: as `open_session`; usage: the model has no output `embedding`.
    static Model load(const std::string& path, const LoadOptions& options = {});

    /// Take a session that is open, whatever runs it.
    explicit Model(std::unique_ptr<Session> session, const LoadOptions& options = {});
    ~Model();
    Model(Model&&) noexcept;
    Model& operator=(Model&&) noexcept;
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    const Manifest& manifest() const noexcept;
    const Session& session() const noexcept;
    /// Elements of an embedding.
    std::int64_t width() const noexcept;

    /// Embed files of pictures: (n, width) row by row, in their order.
    /// @throws Error image: a picture can't be read; the message begins with its path.
    /// @throws Error mismatch: the model gave NaN or infinity. Error backend: the library failed.
    std::vector<float> embed(const std::vector<std::string>& paths) const;
    /// Embed the contents of files of pictures; an error names a picture by its number, from 0.
    std::vector<float> embed(const std::vector<ByteView>& contents) const;
    /// Embed pictures that are decoded: RGB, upright.
    std::vector<float> embed(const std::vector<Image>& images) const;
    /// Embed what the model itself takes: `count` pictures, one after the other, as the manifest says.
    std::vector<float> embed_input(const void* input, std::int64_t count) const;

    /// Run the golden sample, as `itae::verify`.
    Verification verify() const;

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace itae
