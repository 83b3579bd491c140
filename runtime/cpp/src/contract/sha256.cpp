#include "contract/sha256.hpp"

#include <openssl/evp.h>

#include <array>

#include "itae/error.hpp"

namespace itae {
namespace {

void check(int status) {
    if (status != 1) throw Error(ErrorKind::backend, "OpenSSL can't compute SHA-256 here");
}

}  // namespace

void Sha256::Free::operator()(evp_md_ctx_st* context) const noexcept { EVP_MD_CTX_free(context); }

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
    check(context_ == nullptr ? 0 : EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr));
}

void Sha256::add(ByteView piece) { check(EVP_DigestUpdate(context_.get(), piece.data, piece.size)); }

std::string Sha256::digits() const {
    std::array<unsigned char, 32> digest{};
    const std::unique_ptr<evp_md_ctx_st, Free> copy(EVP_MD_CTX_new());  // the context itself can be added to
    check(copy == nullptr ? 0 : EVP_MD_CTX_copy_ex(copy.get(), context_.get()));
    check(EVP_DigestFinal_ex(copy.get(), digest.data(), nullptr));
    constexpr const char* hexadecimal = "0123456789abcdef";
    std::string text;
    for (const unsigned byte : digest) {
        text += hexadecimal[byte >> 4];
        text += hexadecimal[byte & 15];
    }
    return text;
}

std::string sha256(ByteView bytes) {
    Sha256 hash;
    hash.add(bytes);
    return hash.digits();
}

}  // namespace itae
