#pragma once

#include <memory>
#include <string>

#include "itae/bytes.hpp"

struct evp_md_ctx_st;

namespace itae {

/// SHA-256 of bytes that are given in pieces.
class Sha256 {
  public:
    Sha256();
    void add(ByteView piece);
    /// SHA-256 of what was added so far: 64 lowercase hexadecimal digits.
    std::string digits() const;

  private:
    struct Free {
        void operator()(evp_md_ctx_st* context) const noexcept;
    };
    std::unique_ptr<evp_md_ctx_st, Free> context_;
};

/// SHA-256 of these bytes: 64 lowercase hexadecimal digits.
std::string sha256(ByteView bytes);

}  // namespace itae
