#include <cstdio>

#include "itae/version.hpp"

int main() {
    std::fprintf(stderr, "itae-embed %s: not written yet\n", itae::version());
    return 2;
}
