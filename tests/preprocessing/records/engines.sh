#!/bin/sh
# Makes engines that Beam's portable runner can use, each once: engines.sh FOLDER BEAM NAME...
# FOLDER/flink/job-server.jar and FOLDER/spark/job-server.jar, Beam's job servers, come from Maven Central;
# FOLDER/prism/prism is built from its Go module. All of them are of version BEAM where that is served,
# else of the nearest one of which all parts are. What was tried is in FOLDER/NAME.log; where nothing
# could be had, its tests skip.
set -u
folder=$1 beam=$2
shift 2
# The newest version of which Maven Central's mirrors have every part of both job servers.
parts=2.62.0
# The nearest versions after 2.68.0 that Go's checksum database knows.
prisms="v2.71.0 v2.73.0"
spark=3.5.0
PATH="$PATH:/usr/local/go/bin"
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

# What Java from version 17 on has to open; of a jar that is started, its manifest says so.
opens="java.lang.invoke java.lang.reflect java.io java.net java.nio java.util java.util.concurrent \
java.util.concurrent.atomic sun.nio.ch sun.nio.cs sun.security.action sun.util.calendar"

dependency() {
    printf '<dependency><groupId>%s</groupId><artifactId>%s</artifactId><version>%s</version></dependency>\n' "$@"
}

# name version dependency-lines: copies a runner and all that it needs to FOLDER/NAME/lib.
fetch() {
    cat >"$folder/$1/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion><groupId>engines</groupId><artifactId>$1</artifactId><version>$2</version>
<dependencies>
$3
</dependencies>
</project>
POM
    rm -rf "$folder/$1/lib"
    mvn -B -q -f "$folder/$1/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
        -DoutputDirectory="$folder/$1/lib"
}

# name main-class artifact further-dependencies: the job server as a jar that names those in lib.
job_server() {
    command -v mvn java jar >/dev/null || {
        echo "expected mvn, java and jar on the PATH, found not all of them"
        return 1
    }
    rm -rf "${folder:?}/$1" && mkdir "$folder/$1"
    echo "asking for org.apache.beam:$3-job-server:$beam"
    if mvn -B -q dependency:copy -Dartifact="org.apache.beam:$3-job-server:$beam" \
        -DoutputDirectory="$folder/$1"; then
        mv "$folder/$1/$3-job-server-$beam.jar" "$folder/$1/job-server.jar"
        version=$beam
        return 0
    fi
    for version in "$beam" "$parts"; do
        echo "asking for the parts of $3:$version"
        all="$(dependency org.apache.beam "$3" "$version")
$4"
        if fetch "$1" "$version" "$all"; then
            {
                printf 'Main-Class: %s\n' "$2"
                # A line of a manifest has at most 72 bytes; one that begins with a space continues it.
                printf 'Class-Path:'
                for jar in "$folder/$1"/lib/*.jar; do printf ' lib/%s\n ' "${jar##*/}"; done | cut_lines
                printf '\n'
                printf 'Add-Opens: java.base/java.lang\n'
                for name in $opens; do printf '  java.base/%s\n' "$name"; done
            } >"$folder/$1/manifest" && jar -cfm "$folder/$1/job-server.jar" "$folder/$1/manifest"
            return
        fi
    done
    return 1
}

cut_lines() {
    # The first one follows the name of the field.
    sed 's/^\(.\{59\}\)\(.\)/\1\n \2/'
}

install_flink() {
    job_server flink org.apache.beam.runners.flink.FlinkJobServerDriver beam-runners-flink-1.19 \
        "$(dependency org.slf4j slf4j-simple 1.7.36)"
}

install_spark() {
    # Beam leaves Spark itself to the cluster.
    job_server spark org.apache.beam.runners.spark.SparkJobServerDriver beam-runners-spark-3 \
        "$(for name in core streaming sql; do dependency org.apache.spark "spark-${name}_2.12" "$spark"; done)"
}

install_prism() {
    command -v go >/dev/null || {
        echo "expected Go 1.23 or newer on the PATH, found none"
        return 1
    }
    prism=github.com/apache/beam/sdks/v2/go/cmd/prism
    for version in "v$beam" $prisms; do
        echo "asking for $prism@$version"
        # In a module of its own: `go install` also asks for newer versions, which a proxy may not list.
        rm -rf "$folder/prism" && mkdir -p "$folder/prism/module" && (
            cd "$folder/prism/module" && go mod init engines && go get "$prism@$version" &&
                go build -o ../prism "$prism"
        ) && version=${version#v} && return
    done
    return 1
}

# name: skips an engine that is there already, for this version of Beam.
engine() {
    [ "$(sed -n 's/.* for //p' "$folder/$1.version" 2>/dev/null)" = "$beam" ] && return
    printf 'Installing %s, a minute or more\n' "$1" >&2
    rm -f "$folder/$1.version"
    version=
    if "install_$1" >"$folder/$1.log" 2>&1; then
        printf '%s for %s' "$version" "$beam" >"$folder/$1.version"
        [ "$version" = "$beam" ] ||
            printf '%s %s could not be had, it is of %s\n' "$1" "$beam" "$version" >&2
    else
        printf '%s could not be had, its tests skip; tried:\n%s\n' "$1" \
            "$(grep -E '^asking|^expected|(not|n.t) (find|found|resolve|known)|^go: .*:' "$folder/$1.log" | cut -c1-300 | head -n 12)" >&2
    fi
}

for name in "$@"; do
    case "$name" in
    flink | spark | prism) engine "$name" ;;
    *) printf 'error: expected engines among flink, spark, prism, found "%s"\n' "$name" >&2 && exit 2 ;;
    esac
done
